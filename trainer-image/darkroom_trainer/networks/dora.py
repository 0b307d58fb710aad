"""DoRA (Liu et al. 2024, arXiv 2402.09353): LoRA turns the weights of each input, a magnitude gives them their length.

With W' = W + alpha/rank·up·down, the layer's weight is m·W'/‖W'‖, norm and magnitude m taken over all outputs of an
input (and the kernel). That is a factor of the inputs, so no weight is ever rebuilt for the product with them.
"""

from __future__ import annotations

from typing import Any

import torch

from darkroom_trainer.networks.lora import LowRank
from darkroom_trainer.networks.places import Place


class Decomposed(LowRank):
    """Two factors and the magnitudes of a layer's inputs.

    What is trained is a magnitude's distance from the base model's: weight decay then leads back there, as it does in
    LoRA, and not towards a layer of zeros.
    """

    def __init__(self, place: Place, weights: dict[str, torch.Tensor], *, rank: int, alpha: float) -> None:
        super().__init__(place, weights, rank=rank, alpha=alpha)
        self.first = norms(place.layer.weight.detach().to(torch.float32))
        self._whole_inputs = torch.empty(0)
        """Of the layer's last call at a strength other than 1: as they are at strength 1."""

    def attach(self) -> None:
        """Let the layer's output change with the weights from now on."""
        self.place.layer.register_forward_pre_hook(self._lengthen)
        super().attach()

    def exact(self) -> dict[str, torch.Tensor]:
        """Return alpha, and the magnitudes: few numbers, which rounding would cost much of what they learnt."""
        return {**super().exact(), "dora_scale": self.magnitudes()}

    def magnitudes(self) -> torch.Tensor:
        """Return the lengths that the inputs' weights are to have."""
        return self.first + self.weights["magnitude"]

    def _lengthen(self, _layer: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs, *rest = args
        factors = self._factors()
        if self.strength != 1:
            self._whole_inputs = inputs * factors
            factors = 1 + self.strength * (factors - 1)
        return (inputs * factors).to(inputs.dtype), *rest

    def _add(self, layer: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Add the factors' product; in a picture of another strength W + strength (W_dora - W), as readers merge it."""
        if self.strength != 1:
            args = (self._whole_inputs.to(args[0].dtype), *args[1:])
        return super()._add(layer, args, output)

    def _factors(self) -> torch.Tensor:
        weight = self.place.layer.weight
        # The norm counts as a constant in the gradient (section 4.3 of the paper), so nothing of the sum is kept.
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            product = self.weights["up"].flatten(1) @ self.weights["down"].flatten(1)
            lengths = norms(weight.to(torch.float32) + self.scale * product.view(weight.shape))
        return self.magnitudes() / lengths.clamp_min(torch.finfo(torch.float32).eps)


def norms(weight: torch.Tensor) -> torch.Tensor:
    """Return the length of each input's weights, in a shape that multiplies both a weight and a layer's inputs."""
    lengths: torch.Tensor = torch.linalg.vector_norm(
        weight, dim=[axis for axis in range(weight.ndim) if axis != 1], keepdim=True
    )
    return lengths


def first_magnitude(place: Place) -> dict[str, torch.Tensor]:
    """Return magnitudes that leave the layer as it is."""
    into, kernel = place.layer.weight.shape[1], place.layer.weight.shape[2:]
    return {"magnitude": torch.zeros((1, into, *(1 for _ in kernel)))}
