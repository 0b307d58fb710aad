"""Checkpoints of each family's real topology with tiny random weights, as single files of about 10 MB.

All levels, two layers a block, the whole CLIP vocabulary: every name and converter is that of production, only the
widths are small. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from darkroom_trainer.families.configurations import FAMILIES
from darkroom_trainer.families.loading import links_of
from darkroom_trainer.safetensors_file import encode

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 32, 64, 64],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,  # diffusers means the number of heads
}
VAE: dict[str, Any] = {
    "block_out_channels": [16, 16, 32, 32],
    "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 64,
    "scaling_factor": 0.18215,
}
TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 32,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
CONFIG: dict[str, dict[str, Any]] = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER, "scheduler": SCHEDULER}
OPEN_CLIP: dict[str, Any] = TEXT_ENCODER | {"hidden_act": "gelu", "pad_token_id": 0}
SD2: dict[str, dict[str, Any]] = {
    "unet": UNET | {"attention_head_dim": [2, 2, 4, 4], "use_linear_projection": True},
    "vae": VAE,
    "text_encoder": OPEN_CLIP,
    "scheduler": SCHEDULER | {"prediction_type": "epsilon"},
}
SDXL: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 32, 64],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 80,
        "attention_head_dim": [2, 4, 4],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": [1, 1, 2],
        "projection_class_embeddings_input_dim": 6 * 8 + 48,
    },
    "vae": VAE | {"scaling_factor": 0.13025},
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": OPEN_CLIP | {"hidden_size": 48, "projection_dim": 48, "num_hidden_layers": 3},
    "scheduler": SCHEDULER,
}
CONFIGS = {"SD15": CONFIG, "SD2": SD2, "SDXL": SDXL}


def tiny_modules(family: str = "SD15", seed: int = 0) -> dict[str, torch.nn.Module]:
    """Build a family's parts with random weights; the caller's random numbers stay as they were."""
    config = CONFIGS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = {"text_encoder": CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))}
        if "text_encoder_2" in config:
            modules["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**config["text_encoder_2"]))
        return modules | {"unet": UNet2DConditionModel(**config["unet"]), "vae": AutoencoderKL(**config["vae"])}


def tiny_tensors(seed: int = 0, family: str = "SD15") -> dict[str, torch.Tensor]:
    """Return the tensors of the tiny checkpoint under the names that single files use, as fp16."""
    modules, tensors = tiny_modules(family, seed), dict[str, torch.Tensor]()
    for part, links in links_of(FAMILIES[family], modules, layers_per_block=2).items():
        weights = {name: weight.detach().half() for name, weight in modules[part].named_parameters()}
        for link in links:
            tensor = link.pack([weights[name] for name in link.names])
            # The files' VAE has 1x1 convolutions where diffusers has linear layers.
            is_projection = ".attn_1." in link.key and tensor.ndim == 2
            tensors[link.key] = (tensor[:, :, None, None] if is_projection else tensor).contiguous()
    if family == "SD2":  # real files have a last layer more, which no tool of the family uses
        last = {name: it for name, it in tensors.items() if ".resblocks.1." in name}
        tensors |= {name.replace(".resblocks.1.", ".resblocks.2."): it.clone() for name, it in last.items()}
    return tensors


def write_tiny(path: Path, family: str = "SD15", *, seed: int = 0, **more: torch.Tensor) -> Path:
    """Write a tiny checkpoint, with more tensors if told, and return its path."""
    metadata = {"darkroom.config": json.dumps(CONFIGS[family]), "format": "pt"}
    path.write_bytes(encode(tiny_tensors(seed, family) | more, metadata))
    return path


def write_tiny_sd15(path: Path, *, seed: int = 0) -> Path:
    """Write the tiny checkpoint of SD 1.5 and return its path."""
    return write_tiny(path, seed=seed)
