"""A layer of the base model with trained weights beside it: what all networks share.

Only the layer's `forward` is replaced, so the model keeps its modules and their names. What is trained is fp32 whatever
the base is, under autocast too. Neighbours: one module for each network; `adapter` holds a model's layers together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch.nn import functional

from darkroom_trainer.networks.places import Place

Forward = Callable[[torch.Tensor], torch.Tensor]


class Adapted(ABC):
    """The trained weights at one layer and what they add to its output."""

    def __init__(self, place: Place, weights: Mapping[str, torch.Tensor], *, rank: int, alpha: float) -> None:
        self.place = place
        self.alpha = alpha
        self.rank = rank
        self.scale = alpha / rank
        self.is_scaled = True
        """Whether alpha counts."""
        self.strength = 1.0
        """Share of what is added, in pictures that people want painted with less or more of it."""
        device = place.layer.weight.device
        self.weights = {name: torch.nn.Parameter(it.to(device, torch.float32)) for name, it in weights.items()}

    def attach(self) -> None:
        """Let the layer's output change with the weights from now on."""
        self.place.layer.forward = partial(self.output, self.place.layer.forward)  # type: ignore[method-assign]

    def output(self, plain: Forward, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's changed output, given how it calculates the plain one."""
        return self.summed(plain(inputs), inputs)

    def summed(self, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return a plain output with what the weights add for these inputs."""
        if not torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.float32)
        added = self.added(inputs)
        return (output + (added if self.strength == 1 else self.strength * added)).to(output.dtype)

    @abstractmethod
    def added(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what is added to the layer's output for these inputs."""

    @property
    def suffixes(self) -> Mapping[str, str]:
        """Return which weights a file keeps in its number format, and what it calls them after the layer's name."""
        return {name: name for name in self.weights}

    def exact(self) -> dict[str, torch.Tensor]:
        """Return what a file keeps beside the weights, in whatever number format holds it exactly, by suffix."""
        return {"alpha": torch.tensor(self.alpha)}

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Return what a file must hold of this layer to go on from it, beside alpha: shapes by suffix."""
        return {suffix: tuple(self.weights[name].shape) for name, suffix in self.suffixes.items()}

    def fill(self, tensors: Mapping[str, torch.Tensor], factor: float) -> None:
        """Take the weights over from a file, the update multiplied by a factor.

        Args:
            tensors: By suffix, those of `kept`; a kernel of one pixel may be there or not.
            factor: A power of two, which rounds nothing.
        """
        for index, (name, suffix) in enumerate(self.suffixes.items()):
            tensor = tensors[suffix] if index else tensors[suffix] * factor  # the update is linear in each of them
            self.weights[name].data.copy_(tensor.reshape(self.weights[name].shape))

    def named(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield the weights under names that are unique in the adapter."""
        for name, parameter in self.weights.items():
            yield f"{self.place.part}.{self.place.module}.{name}", parameter

    def in_file(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield the weights that a file keeps in its own number format, under their names there."""
        for name, suffix in self.suffixes.items():
            yield f"{self.place.name}.{suffix}", self.weights[name]


def apply(layer: torch.nn.Linear | torch.nn.Conv2d, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return what a layer would make of inputs with this weight and no bias."""
    if isinstance(layer, torch.nn.Linear):
        return functional.linear(inputs, weight)
    return convolve(layer, inputs, weight)


def low_rank(
    layer: torch.nn.Linear | torch.nn.Conv2d, inputs: torch.Tensor, *, down: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    """Return `up` of `down` of inputs; in a convolution `down` does what the layer does, and `up` is pointwise."""
    hidden = apply(layer, inputs, down)
    return functional.linear(hidden, up) if up.ndim == 2 else functional.conv2d(hidden, up)


def convolve(layer: torch.nn.Conv2d, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve inputs by another weight as a layer does by its own."""
    return functional.conv2d(inputs, weight, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw a weight as torch does for any linear layer (He et al. 2015, arXiv 1502.01852), and so kohya for `down`."""
    return torch.nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
