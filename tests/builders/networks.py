"""Networks in a model as training would leave them: far enough from their start to change every picture."""

from __future__ import annotations

import torch

from darkroom_api.networks import Network
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.networks.adapter import Adapter, inject


def trained(
    model: StableDiffusion, network: Network, *, text_encoder: bool = True, size: float = 0.3, seed: int = 5
) -> Adapter:
    """Inject a network and give numbers to all weights that begin at 0."""
    adapter = inject(network, model, seed=1, train_text_encoder=text_encoder)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.named_parameters().values():
        if not parameter.data.any():
            parameter.data = torch.randn(parameter.shape, generator=generator) * size
    return adapter
