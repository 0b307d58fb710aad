"""An SD 1.5 of full size with random weights, for trainers that load no smaller one; what a step costs is the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from darkroom_trainer.families.configurations import SD15
from darkroom_trainer.families.loading import links_of
from dev.cluster.paths import cache_directory

_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def full_size_model() -> Path:
    """Return a file of 2.1 GB in the cache, written the first time."""
    path = cache_directory() / "peers" / "sd15-random.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(_tensors()), path.with_suffix(".part"), {"format": "pt"})
        path.with_suffix(".part").rename(path)
    return path


def _tensors() -> Iterator[tuple[str, torch.Tensor]]:
    with torch.device("meta"):
        modules: dict[str, torch.nn.Module] = {
            "unet": UNet2DConditionModel(**_UNET),
            "vae": AutoencoderKL(**_VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**_TEXT_ENCODER)),
        }
    generator = torch.Generator().manual_seed(1)
    for part, links in links_of(SD15, modules, layers_per_block=2).items():
        shapes = {name: weight.shape for name, weight in modules[part].named_parameters()}
        for link in links:
            packed = link.pack([_random(name, shapes[name], generator) for name in link.names])
            # The files' VAE has 1x1 convolutions where diffusers has linear layers.
            is_projection = ".attn_1." in link.key and packed.ndim == 2
            yield link.key, (packed[:, :, None, None] if is_projection else packed).contiguous()


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return weights that keep the size of what goes through: no step of a benchmark may end in NaN."""
    if len(shape) == 1:
        return torch.ones(shape).half() if name.endswith("weight") else torch.zeros(shape).half()
    return (torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))).half()
