"""LoRA (Hu et al. 2021, arXiv 2106.09685), and LoCon where it is put into convolutions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from darkroom_trainer.networks.adapted import Adapted, drawn, low_rank
from darkroom_trainer.networks.places import Place


class LowRank(Adapted):
    """Two factors whose product, times alpha / rank, is added to the layer's weight."""

    @property
    def suffixes(self) -> Mapping[str, str]:
        """Return what the factors are called in a file, after the layer's name."""
        return {"down": "lora_down.weight", "up": "lora_up.weight"}

    def added(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the factors' output, scaled."""
        return low_rank(self.place.layer, inputs, down=self.weights["down"], up=self.weights["up"]) * self.scale


def first_factors(place: Place, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draw `down` as kohya does and set `up` to 0, in the shapes of its files."""
    out, into, *kernel = place.layer.weight.shape
    return {
        "down": drawn((rank, into, *kernel), generator),
        "up": torch.zeros((out, rank, *(1 for _ in kernel))),
    }
