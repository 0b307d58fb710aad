"""A Stable Diffusion 1.5 checkpoint of the real topology with tiny random weights, as one file of 9 MB.

Four levels, two layers a block, the whole CLIP vocabulary: every name and converter is that of production, only the
widths are small. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from darkroom_trainer.families.tokenizer import load_tokenizer
from darkroom_trainer.safetensors_file import encode
from examples.base_model.export import Parts, to_ldm

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
CONFIG = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER, "scheduler": SCHEDULER}


def tiny_parts(seed: int = 0) -> Parts:
    """Build the parts with random weights; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
        return Parts(UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), text_encoder, load_tokenizer())


def tiny_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the tensors of the tiny checkpoint under the names that single files use, as fp16."""
    return {key: tensor.detach().half().contiguous() for key, tensor in to_ldm(tiny_parts(seed)).items()}


def write_tiny_sd15(path: Path, *, seed: int = 0) -> Path:
    """Write the tiny checkpoint and return its path."""
    path.write_bytes(encode(tiny_tensors(seed), {"darkroom.config": json.dumps(CONFIG), "format": "pt"}))
    return path
