"""Which layers take part: `network.targets`, and the parts of the model that are trained at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

from darkroom_api.failures import FailureReason
from darkroom_api.networks import Network
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.networks.places import Place, find_places

_TARGETS: Final = "spec.network.targets"
_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "All": ("",),
    "Attention": (".attn1.", ".attn2.", ".self_attn."),
    "CrossAttention": (".attn2.",),
    "FeedForward": (".ff.", ".mlp."),
}
"""What the paths of a kind's layers hold."""
_NEAREST: Final = 3


def choose_places(network: Network, model: StableDiffusion, *, train_text_encoder: bool) -> list[Place]:
    """Return the layers that a network adapts, in the model's own order.

    Raises:
        RunError: Patterns match nothing, or nothing is left to train; all problems at once.
    """
    targets = network.targets
    known = [it for part in model.parts for it in find_places(model, part, convolutions=True)]
    adapted = [
        it
        for part in (model.parts if train_text_encoder else [UNET_PART])
        for it in find_places(model, part, convolutions=network.conv_rank is not None)
        if any(mark in f".{it.module}." for mark in _KINDS[targets.layers])
    ]
    problems = [*_unmatched("include", targets.include, known), *_unmatched("exclude", targets.exclude, known)]
    problems += _not_adapted(targets.include, known, adapted)
    chosen = [it for it in adapted if _takes_part(it, include=targets.include, exclude=targets.exclude)]
    if not chosen and not problems:
        problems.append(f"{_TARGETS}: no layer is left to train")
    if problems:
        raise RunError(FailureReason.INVALID_SPEC, "\n".join(problems))
    return chosen


def _takes_part(place: Place, *, include: Sequence[str], exclude: Sequence[str]) -> bool:
    included = not include or any(_matches(place, pattern) for pattern in include)
    return included and not any(_matches(place, pattern) for pattern in exclude)


def _matches(place: Place, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in place.names)


def _unmatched(field: str, patterns: Sequence[str], known: Sequence[Place]) -> Iterator[str]:
    for index, pattern in enumerate(patterns):
        if not any(_matches(it, pattern) for it in known):
            nearest = _nearest(pattern, known)
            yield f"{_TARGETS}.{field}[{index}]: {pattern!r} matches no layer; the nearest are {', '.join(nearest)}"


def _nearest(pattern: str, known: Sequence[Place]) -> list[str]:
    bare = pattern.replace("*", "").replace("?", "")
    return get_close_matches(bare, [name for it in known for name in it.names], n=_NEAREST, cutoff=0.0)


def _not_adapted(patterns: Sequence[str], known: Sequence[Place], adapted: Sequence[Place]) -> Iterator[str]:
    for index, pattern in enumerate(patterns):
        asked = [it for it in known if _matches(it, pattern)]
        if asked and not any(_matches(it, pattern) for it in adapted):
            yield (
                f"{_TARGETS}.include[{index}]: {pattern!r} matches only layers that are not adapted, such as "
                f"{asked[0].name}; layers outside the transformers need network.convRank, text encoders a learning "
                "rate above 0, and all must be of the kind that targets.layers says"
            )
