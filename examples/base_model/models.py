"""The real SD 1.5 topology at small widths: one place that knows every width and builds the four parts.

Four levels and two layers per block as in SD 1.5, so that single-file names and every converter are the ones of
production. Widths can be read from a checkpoint's shapes; heads and normalisation groups cannot, so `export` writes
these configurations into the file's metadata.
"""

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

SIDE = 128  # pixels of a training picture
VAE_FACTOR = 8
LATENT_SCALE = 0.18215  # SD 1.5's; the latents are whitened so that it stays true
BOS, EOS = 49406, 49407
MAX_TOKENS = 77

UNET_CONFIG: dict[str, Any] = {
    "sample_size": SIDE // VAE_FACTOR,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64, 96, 96],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 64,
    "attention_head_dim": 2,  # diffusers means heads here; SD 1.5's 8 make a step 1.5 times as long at these widths
    "norm_num_groups": 8,
}
VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [16, 32, 64, 96],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 4,
    "sample_size": SIDE,
    "scaling_factor": LATENT_SCALE,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TOKENS,
    "hidden_act": "quick_gelu",
    "projection_dim": 64,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def build_vae() -> AutoencoderKL:
    """Build the autoencoder with weights from torch's generator."""
    return AutoencoderKL(**VAE_CONFIG)


def build_unet() -> UNet2DConditionModel:
    """Build the denoiser with weights from torch's generator."""
    return UNet2DConditionModel(**UNET_CONFIG)


def build_text_encoder() -> CLIPTextModel:
    """Build the text encoder with weights from torch's generator."""
    return CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))


def build_scheduler() -> DDIMScheduler:
    """Build SD 1.5's noise schedule."""
    return DDIMScheduler(**SCHEDULER_CONFIG)
