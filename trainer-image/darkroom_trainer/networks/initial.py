"""Goes on from a trained file: finds its layers in the model and fills a network with them, or says what does not fit.

Files of kohya, of LyCORIS and of all that write as they do, and LoRAs of diffusers and PEFT (`foreign_names`). Nothing
is guessed and nothing rounded: what training begins with is what the file makes of the base model in other tools.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError
from darkroom_trainer.networks.adapted import Adapted
from darkroom_trainer.networks.foreign_names import ALPHA, Foreign, Settings, recognised
from darkroom_trainer.weights_file import WeightsFile

_SHOWN: Final = 3
_ADVICE: Final = (
    "Make network.type, rank, convRank, alpha, convAlpha and targets those of the file, or begin without it."
)


@dataclass
class _Problems:
    """What does not fit, by the kind of misfit; a file of the wrong rank has hundreds of one kind."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, problem: str) -> None:
        problems = self.found.setdefault(kind, [])
        if problem not in problems[-1:]:  # a layer has several tensors
            problems.append(problem)

    def told(self) -> Iterator[str]:
        for kind, problems in self.found.items():
            more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            yield f"{kind}: {'; '.join(problems[:_SHOWN])}{more}"


def begin_with(file: WeightsFile, layers: Sequence[Adapted]) -> None:
    """Fill a network's layers from a file; those that the file lacks stay as they are, which is without effect.

    Raises:
        RunError: The file has other layers, other shapes, or another scale that no exact change of the weights makes
            up for; all problems at once.
    """
    problems, given = _Problems(), dict[int, dict[str, str]]()
    owners = {name: index for index, layer in enumerate(layers) for name in recognised(layer.place)}
    for key in sorted(file.header.shapes):
        foreign = Foreign.of(key)
        if foreign.layer in owners:
            given.setdefault(owners[foreign.layer], {})[foreign.suffix] = key
        else:
            problems.add("it holds layers that are not trained here and would be lost", foreign.layer)
    try:
        settings = Settings.of(file.header.metadata)
        for index, keys in sorted(given.items()):
            _fill(layers[index], keys, file, settings=settings, problems=problems)
    except ValueError as error:
        problems.add("its metadata cannot be read", str(error))
    told = [f"{file.field}: {file.path.name}: {problem}" for problem in problems.told()]
    if not given:
        told = [f"{file.field}: {file.path.name} holds no layer that is trained here"]
    if told:
        raise RunError(FailureReason.MODEL_REJECTED, "\n".join(told), advice=_ADVICE)


def _fill(
    layer: Adapted, keys: Mapping[str, str], file: WeightsFile, *, settings: Settings, problems: _Problems
) -> None:
    have = {suffix: file.header.shapes[key] for suffix, key in keys.items()}
    expected = layer.kept()
    if not _fits(have, expected | ({ALPHA: ()} if ALPHA in have else {})):
        told = f"{layer.place.name} has {_list(have)}, not {_list(expected)}"
        problems.add("its layers are not those of this network", told)
        return
    tensors = {suffix: tensor.to(torch.float32) for suffix, tensor in _tensors(file, keys)}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        problems.add("it holds numbers that are not finite", layer.place.name)
        return
    alpha = float(tensors[ALPHA]) if ALPHA in tensors else settings.alpha(layer)
    factor = alpha / float(torch.tensor(layer.alpha)) if layer.is_scaled else 1.0  # alphas as files have them, in fp32
    if math.frexp(factor)[0] != 0.5:
        problems.add(
            "its alpha differs, and not by a power of two, so that its weights could not stay exact",
            f"{layer.place.name} has alpha {alpha:g} at rank {layer.rank}, not {layer.alpha:g}",
        )
        return
    layer.fill(tensors, factor)


def _tensors(file: WeightsFile, keys: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    suffixes = {key: suffix for suffix, key in keys.items()}
    return ((suffixes[key], tensor) for key, tensor in file.tensors(suffixes))


def _fits(have: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell whether shapes agree; linear layers and 1x1 convolutions may stand for each other."""
    return have.keys() == expected.keys() and all(_bare(have[name]) == _bare(expected[name]) for name in expected)


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without a kernel of one pixel; that of a single number is empty."""
    return () if shape == (1,) else shape[:2] if shape[2:] == (1, 1) else shape


def _list(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return " ".join(f"{name}{list(shape)}" for name, shape in sorted(shapes.items()) if name != ALPHA)
