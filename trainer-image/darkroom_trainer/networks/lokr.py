"""LoKr: the update is a Kronecker product w1⊗w2 (Yeh et al. 2024, arXiv 2309.14859, section 3.3).

It is never built: of inputs that stand as a matrix, w2 multiplies the rows and w1 the columns. Names, shapes and when a
matrix has factors are LyCORIS', whose reader derives the one from the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch.nn import functional

from darkroom_api.networks import LoKr
from darkroom_trainer.networks.adapted import Adapted, convolve, drawn
from darkroom_trainer.networks.places import Place

_SMALL: Final = "lokr_w1"
_LARGE: Final = "lokr_w2"


class Kronecker(Adapted):
    """A small and a larger matrix at one layer, each whole or as a pair of factors."""

    def __init__(self, place: Place, weights: Mapping[str, torch.Tensor], *, rank: int, alpha: float) -> None:
        # Readers count alpha by the rank of a pair and find none here, so this alpha is the one that says what they do.
        is_whole = _SMALL in weights and _LARGE in weights
        super().__init__(place, weights, rank=rank, alpha=rank if is_whole else alpha)
        self.is_scaled = not is_whole

    def added(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the output of the update, scaled."""
        layer, small, large = self.place.layer, self._matrix(_SMALL), self._matrix(_LARGE)
        outer = small.shape[1]
        if isinstance(layer, torch.nn.Linear):
            rows = functional.linear(torch.unflatten(inputs, -1, (outer, -1)), large.flatten(1))
            return functional.linear(rows.mT, small).mT.flatten(-2) * self.scale
        large = large.view(large.shape[0], -1, *layer.weight.shape[2:])
        groups = convolve(layer, torch.unflatten(inputs, 1, (outer, -1)).flatten(0, 1), large)
        groups = torch.unflatten(groups, 0, (-1, outer))
        mixed = functional.linear(groups.movedim(1, -1), small).movedim(-1, 1)
        return mixed.flatten(1, 2) * self.scale

    def _matrix(self, name: str) -> torch.Tensor:
        if name in self.weights:
            return self.weights[name]
        return self.weights[f"{name}_a"] @ self.weights[f"{name}_b"]


def first_matrices(network: LoKr, place: Place, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draw the matrices as LyCORIS does; the larger one, or one of its factors, is 0."""
    out, into, *kernel = place.layer.weight.shape
    (outer_out, inner_out), (outer_in, inner_in) = divided(out, network.factor), divided(into, network.factor)
    weights = {}
    if network.decompose_both and rank < max(outer_out, outer_in) / 2:
        weights[f"{_SMALL}_a"] = drawn((outer_out, rank), generator)
        weights[f"{_SMALL}_b"] = drawn((rank, outer_in), generator)
    else:
        weights[_SMALL] = drawn((outer_out, outer_in), generator)
    if network.full_matrix or rank >= max(inner_out, inner_in) / 2:
        weights[_LARGE] = torch.zeros((inner_out, inner_in, *kernel))
    else:
        weights[f"{_LARGE}_a"] = drawn((inner_out, rank), generator)
        weights[f"{_LARGE}_b"] = torch.zeros((rank, inner_in * math.prod(kernel)))
    return weights


def divided(number: int, factor: int | None) -> tuple[int, int]:
    """Return two divisors of a number, the smaller first: LyCORIS' rule.

    Args:
        number: Inputs or outputs of a layer.
        factor: One of the two if it divides the number, else the most that the smaller may be. None: nearly equal ones.
    """
    if factor is not None and number % factor == 0:
        return min(factor, number // factor), max(factor, number // factor)
    largest = min(math.isqrt(number), factor or number)
    smaller = next(it for it in range(largest, 0, -1) if number % it == 0)
    return smaller, number // smaller
