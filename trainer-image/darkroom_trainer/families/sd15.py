"""Stable Diffusion 1.5 from one file, offline: configurations from the tensors' shapes, names by diffusers' importers.

A file may carry configurations in its metadata (`darkroom.config`) for what no shape says: heads and groups.
Real SD 1.5 files have none, and get the published ones. Neighbours: `recognition` judged the file before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.recognition import TEXT_ENCODER, UNET, VAE, Shapes
from darkroom_trainer.families.tokenizer import load_tokenizer
from darkroom_trainer.safetensors_file import Header

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]
CONFIG_KEY: Final = "darkroom.config"

SCHEDULER: Final[Config] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
"""SD 1.5's noise schedule, sampled by DDIM (Song et al. 2020, arXiv 2010.02502): no randomness beyond the start."""


@dataclass(frozen=True)
class Configs:
    """What builds the four parts, in the words of diffusers and transformers."""

    unet: Config
    vae: Config
    text_encoder: Config
    scheduler: Config


@dataclass(frozen=True)
class StableDiffusion:
    """A base model in memory, ready to be trained on or painted with."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    device: torch.device
    dtype: torch.dtype
    """Number format of UNet and text encoder; the VAE's is always fp32."""


def load(path: Path, header: Header, *, dtype: torch.dtype, device: torch.device) -> StableDiffusion:
    """Load a checked file; the VAE stays in fp32, since half precision turns some pictures into NaN.

    Raises:
        RunError: Its tensors do not fit together.
    """
    configs = configurations(header, path.name)
    try:
        tensors = _read(path, header)
        with init_empty_weights():
            unet = UNet2DConditionModel.from_config(configs.unet)
            vae = AutoencoderKL.from_config(configs.vae)
            text_encoder = CLIPTextModel(CLIPTextConfig(**configs.text_encoder))
        scheduler = DDIMScheduler.from_config(configs.scheduler)
        _fill(unet, convert_ldm_unet_checkpoint(tensors, configs.unet), device, dtype)
        _fill(vae, convert_ldm_vae_checkpoint(tensors, configs.vae), device, torch.float32)
        _fill(text_encoder, _text_encoder_tensors(tensors, text_encoder), device, dtype)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"spec.baseModel.uri: {path.name} has the names of SD 1.5, but its tensors do not fit: {str(error)[:400]}",
        ) from error
    return StableDiffusion(unet, vae, text_encoder, load_tokenizer(), scheduler, device, dtype)


def configurations(header: Header, name: str) -> Configs:
    """Derive the configurations from shapes, then let the file's own metadata have the last word.

    Raises:
        RunError: The metadata cannot be read, or a tensor that must be there is not.
    """
    try:
        own = json.loads(header.metadata.get(CONFIG_KEY, "{}"))
        shapes = header.shapes
        return Configs(
            unet={**unet_config(shapes), **own.get("unet", {})},
            vae={**vae_config(shapes), **own.get("vae", {})},
            text_encoder={**text_encoder_config(shapes), **own.get("text_encoder", {})},
            scheduler={**SCHEDULER, **own.get("scheduler", {})},
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"spec.baseModel.uri: {name} is no complete SD 1.5 checkpoint: {type(error).__name__} {error}",
        ) from error


def unet_config(shapes: Shapes) -> Config:
    """Return the UNet's configuration; `attention_head_dim` is diffusers' name for the number of heads."""
    return {
        "sample_size": 64,
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": [shapes[f"{UNET}input_blocks.{n}.0.out_layers.3.weight"][0] for n in (1, 4, 7, 10)],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": shapes[f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": 8,
        "use_linear_projection": len(shapes[f"{UNET}input_blocks.1.1.proj_in.weight"]) == 2,
    }


def vae_config(shapes: Shapes) -> Config:
    """Return the autoencoder's configuration."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"{VAE}encoder.down.{n}.block.0.conv2.weight"][0] for n in range(4)],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def text_encoder_config(shapes: Shapes) -> Config:
    """Return CLIP's configuration; all of its published text encoders have heads of 64 channels."""
    own = {name.removeprefix(TEXT_ENCODER).removeprefix("text_model."): shape for name, shape in shapes.items()}
    vocabulary, width = own["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": own["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": sum(name.endswith(".mlp.fc1.weight") for name in own),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": own["embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _read(path: Path, header: Header) -> Tensors:
    """Read the tensors of the three parts; others, such as averaged copies, stay on the disk."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in header.shapes if name.startswith((UNET, VAE, TEXT_ENCODER))}


def _text_encoder_tensors(tensors: Mapping[str, torch.Tensor], model: CLIPTextModel) -> Tensors:
    """Name CLIP's tensors as the installed transformers does: it dropped ``text_model.`` in release 5.6."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    bare = {
        name.removeprefix(TEXT_ENCODER).removeprefix("text_model."): tensor
        for name, tensor in tensors.items()
        if name.startswith(TEXT_ENCODER)
    }
    bare.pop("embeddings.position_ids", None)  # old files carry the numbers 0 to 76 as a tensor
    return {f"{prefix}{name}": tensor for name, tensor in bare.items()}


def _fill(model: torch.nn.Module, tensors: Tensors, device: torch.device, dtype: torch.dtype) -> None:
    """Put tensors into an empty model, frozen and in evaluation mode, without a second copy in memory."""
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in tensors.items()}, assign=True)
    model.to(device)  # buffers that no file carries
    model.requires_grad_(requires_grad=False)
    model.eval()
