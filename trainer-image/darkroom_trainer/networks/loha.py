"""LoHa: the update is two low-rank matrices multiplied number by number (Hyeon-Woo et al. 2022, arXiv 2108.06098).

It need not be built to be multiplied with inputs: (A·B)∘(C·D) is itself a product of two factors, whose rank is the
square of the pairs' rank. Names and shapes are LyCORIS', which has this from the paper.
"""

from __future__ import annotations

from typing import Final

import torch

from darkroom_trainer.networks.adapted import Adapted, apply, low_rank
from darkroom_trainer.networks.places import Place

_NAMES: Final = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class Hadamard(Adapted):
    """Two pairs of factors at one layer."""

    def added(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the output of the update, scaled."""
        layer, (first_a, first_b, second_a, second_b) = self.place.layer, (self.weights[name] for name in _NAMES)
        out, into, *kernel = layer.weight.shape
        rank, columns = first_b.shape
        if rank**2 * (out + columns) >= out * columns:  # as many products as with the whole update, or more
            update = ((first_a @ first_b) * (second_a @ second_b)).view(layer.weight.shape)
            return apply(layer, inputs, update) * self.scale
        up = (first_a.unsqueeze(2) * second_a.unsqueeze(1)).view(out, rank**2, *(1 for _ in kernel))
        down = (first_b.unsqueeze(1) * second_b.unsqueeze(0)).view(rank**2, into, *kernel)
        return low_rank(layer, inputs, down=down, up=up) * self.scale


def first_pairs(place: Place, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draw the factors as LyCORIS does; one is 0."""
    out, columns = place.layer.weight.flatten(1).shape

    def normal(*shape: int, std: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    return {
        "hada_w1_a": normal(out, rank, std=0.1),
        "hada_w1_b": normal(rank, columns, std=1.0),
        "hada_w2_a": torch.zeros((out, rank)),
        "hada_w2_b": normal(rank, columns, std=1.0),
    }
