"""Takes pictures out of the training, so that they can judge it.

A picture is known by its content: a copy in another folder or under another name must not be trained on either.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from darkroom_api.failures import FailureReason
from darkroom_trainer.dataset import Picture
from darkroom_trainer.errors import RunError
from darkroom_trainer.randomness import derive

_SHOWN: Final = 20


def hold_out(pictures: Sequence[Picture], number: int, *, seed: int) -> frozenset[str]:
    """Return the contents (SHA-256) that are not trained on.

    Each content has a rank of its own that follows from the seed, so a further picture changes at most one of them.

    Raises:
        RunError: None would be left.
    """
    contents = {picture.sha256 for picture in pictures}
    if number >= len(contents):
        less = f"Lower validation.images to at most {len(contents) - 1}, give" if len(contents) > 1 else "Give"
        raise RunError(
            FailureReason.DATASET_REJECTED,
            f"spec.validation.images: {number} pictures are to be held out, but the dataset has {len(contents)} "
            f"different ones in {len(pictures)} files, and at least 1 must be left to train on",
            advice=f"{less} more pictures, or name others in validation.dataset.",
        )
    ranked = sorted(contents, key=lambda content: derive(seed, "held out", content))
    return frozenset(ranked[:number])


def require_apart(validation: Sequence[Picture], trained: Collection[str]) -> None:
    """Refuse validation pictures that are trained on as well: their loss falls for ever and chooses the last epoch.

    Args:
        validation: The pictures of the validation's own dataset.
        trained: Contents (SHA-256) of the pictures that are trained on.

    Raises:
        RunError: There are such pictures.
    """
    both = [picture.name for picture in validation if picture.sha256 in trained]
    if both:
        more = f"\n… and {len(both) - _SHOWN} more" if len(both) > _SHOWN else ""
        raise RunError(
            FailureReason.DATASET_REJECTED,
            f"spec.validation.dataset.uri: {len(both)} of {len(validation)} pictures are in spec.dataset.uri too, so "
            "they would be trained on:\n" + "\n".join(both[:_SHOWN]) + more,
            advice="Remove them from one of the two, or set validation.images to hold out some of the dataset.",
        )


def each_once(pictures: Sequence[Picture]) -> list[Picture]:
    """Return the first picture of each content, in an order that follows from the contents alone."""
    first: dict[str, Picture] = {}
    for picture in pictures:
        first.setdefault(picture.sha256, picture)
    return [first[content] for content in sorted(first)]
