"""DoRA (Liu et al. 2024, arXiv 2402.09353): LoRA turns the weights of each input, a magnitude gives them their length.

With W' = W + alpha/rank·up·down, the layer's weight is m·W'/‖W'‖, norm and magnitude m taken over all outputs of an
input (and the kernel). That is a factor of the inputs, so no weight is ever rebuilt for the product with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from darkroom_trainer.networks.adapted import Forward
from darkroom_trainer.networks.lora import LowRank
from darkroom_trainer.networks.places import Place

_MAGNITUDES: Final = "dora_scale"


class Decomposed(LowRank):
    """Two factors and the magnitudes of a layer's inputs.

    What is trained is a magnitude's distance from the base model's: weight decay then leads back there, as it does in
    LoRA, and not towards a layer of zeros.
    """

    def __init__(self, place: Place, weights: dict[str, torch.Tensor], *, rank: int, alpha: float) -> None:
        super().__init__(place, weights, rank=rank, alpha=alpha)
        self.first = norms(place.layer.weight.detach().to(torch.float32))

    def output(self, plain: Forward, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's changed output, given how it calculates the plain one."""
        factors = self._factors()
        lengthened = (inputs * factors).to(inputs.dtype)
        if self.strength == 1:
            return self.summed(plain(lengthened), lengthened)
        # With less strength the weight itself goes only so far from the base model's, as in A1111 and ComfyUI.
        return self.summed(plain((inputs * (1 + self.strength * (factors - 1))).to(inputs.dtype)), lengthened)

    def exact(self) -> dict[str, torch.Tensor]:
        """Return alpha, and the magnitudes: few numbers, which rounding would cost much of what they learnt."""
        return {**super().exact(), _MAGNITUDES: self.magnitudes()}

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Return what a file must hold of this layer to go on from it, beside alpha: shapes by suffix."""
        return {**super().kept(), _MAGNITUDES: tuple(self.first.shape)}

    def fill(self, tensors: Mapping[str, torch.Tensor], factor: float) -> None:
        """Take the weights over from a file; a factor changes the factors' product alone, and so not the direction."""
        super().fill(tensors, factor)
        given = tensors[_MAGNITUDES].to(self.first.device).reshape(self.first.shape)
        self.weights["magnitude"].data.copy_(given - self.first)

    def magnitudes(self) -> torch.Tensor:
        """Return the lengths that the inputs' weights are to have."""
        return self.first + self.weights["magnitude"]

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
