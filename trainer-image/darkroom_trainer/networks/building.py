"""What each network of the spec is at a layer: one builder for each class of `darkroom_api.networks`."""

from __future__ import annotations

from functools import singledispatch

import torch

from darkroom_api.networks import DoRA, LoHa, LoKr, LoRA, Network
from darkroom_trainer.networks.adapted import Adapted
from darkroom_trainer.networks.dora import Decomposed, first_magnitude
from darkroom_trainer.networks.loha import Hadamard, first_pairs
from darkroom_trainer.networks.lokr import Kronecker, first_matrices
from darkroom_trainer.networks.lora import LowRank, first_factors
from darkroom_trainer.networks.places import Place


@singledispatch
def build(network: object, place: Place, generator: torch.Generator) -> Adapted:
    """Give a layer the weights of the network that a spec asks for; at first they change nothing."""
    raise NotImplementedError(f"no layer for {type(network).__name__}")


@build.register
def _(network: LoRA, place: Place, generator: torch.Generator) -> Adapted:
    rank, alpha = strength(network, place)
    return LowRank(place, first_factors(place, rank, generator), rank=rank, alpha=alpha)


@build.register
def _(network: LoHa, place: Place, generator: torch.Generator) -> Adapted:
    rank, alpha = strength(network, place)
    return Hadamard(place, first_pairs(place, rank, generator), rank=rank, alpha=alpha)


@build.register
def _(network: LoKr, place: Place, generator: torch.Generator) -> Adapted:
    rank, alpha = strength(network, place)
    return Kronecker(place, first_matrices(network, place, rank, generator), rank=rank, alpha=alpha)


@build.register
def _(network: DoRA, place: Place, generator: torch.Generator) -> Adapted:
    rank, alpha = strength(network, place)
    weights = first_factors(place, rank, generator) | first_magnitude(place)
    return Decomposed(place, weights, rank=rank, alpha=alpha)


def strength(network: Network, place: Place) -> tuple[int, float]:
    """Return rank and alpha at a layer."""
    if not place.is_spatial:
        return network.rank, network.alpha
    assert network.conv_rank is not None
    assert network.conv_alpha is not None
    return network.conv_rank, network.conv_alpha
