"""Write and read the one file: a Stable Diffusion 1.5 checkpoint under the names that every tool of the field knows.

The tables below say where LDM keeps each module of diffusers; `check` proves them by diffusers' own importer. The
metadata key `darkroom.config` carries what no tensor's shape says: heads and groups.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from examples.base_model.models import (
    SCHEDULER_CONFIG,
    SIDE,
    TEXT_CONFIG,
    UNET_CONFIG,
    VAE_CONFIG,
    build_scheduler,
    build_text_encoder,
    build_unet,
    build_vae,
)

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Parts:
    """The four parts of a pipeline that a checkpoint is made of."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer


def to_pipeline(parts: Parts) -> StableDiffusionPipeline:
    """Put the parts into a pipeline without a safety checker: nothing it paints needs one."""
    return StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}


def unet_modules() -> dict[str, str]:
    """Map diffusers' modules of the four-level UNet to the LDM blocks that hold them (without resnet internals)."""
    blocks = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    blocks |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    blocks |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    blocks |= {"mid_block.resnets.1": "middle_block.2"}
    for level in range(4):
        for layer in range(2):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{3 * level + layer + 1}.0"
            blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{3 * level + layer + 1}.1"
        blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{3 * level + 3}.0.op"
        for layer in range(3):
            blocks[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{3 * level + layer}.0"
            blocks[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{3 * level + layer}.1"
        place = 1 if level == 0 else 2  # the first level up has no attention before its upsampler
        blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{3 * level + 2}.{place}.conv"
    return blocks


def vae_modules() -> dict[str, str]:
    """Map diffusers' modules of the four-level autoencoder to LDM's."""
    blocks: dict[str, str] = {}
    for part in ("encoder", "decoder"):
        blocks[f"{part}.conv_norm_out"] = f"{part}.norm_out"
        blocks[f"{part}.mid_block.resnets.0"] = f"{part}.mid.block_1"
        blocks[f"{part}.mid_block.resnets.1"] = f"{part}.mid.block_2"
        attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        for ours, theirs in attention.items():
            blocks[f"{part}.mid_block.attentions.0.{ours}"] = f"{part}.mid.attn_1.{theirs}"
    for level in range(4):
        for layer in range(3):
            blocks[f"encoder.down_blocks.{level}.resnets.{layer}"] = f"encoder.down.{level}.block.{layer}"
            blocks[f"decoder.up_blocks.{level}.resnets.{layer}"] = f"decoder.up.{3 - level}.block.{layer}"
        blocks[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        blocks[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{3 - level}.upsample.conv"
    return blocks


def rename(state: Mapping[str, torch.Tensor], blocks: Mapping[str, str], *, resnet: Mapping[str, str]) -> Tensors:
    """Rename diffusers' keys by the longest module in `blocks` that holds them; what is in none keeps its name."""
    renamed: Tensors = {}
    for key, tensor in state.items():
        module, _, rest = key.rpartition(".")
        while module and module not in blocks:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}"
        if ".resnets." in f".{module}":
            inner, _, leaf = rest.partition(".")
            rest = f"{resnet.get(inner, inner)}.{leaf}"
        renamed[f"{blocks[module]}.{rest}" if module else key] = tensor
    return renamed


def to_ldm(parts: Parts) -> Tensors:
    """Return all tensors under LDM's names, the autoencoder's attention as 1x1 convolutions as in SD 1.5's files."""
    tensors: Tensors = {}
    for key, tensor in rename(parts.unet.state_dict(), unet_modules(), resnet=UNET_RESNET).items():
        tensors[UNET_PREFIX + key] = tensor
    for key, tensor in rename(parts.vae.state_dict(), vae_modules(), resnet=VAE_RESNET).items():
        is_projection = ".attn_1." in key and tensor.ndim == 2
        tensors[VAE_PREFIX + key] = tensor[:, :, None, None] if is_projection else tensor
    for key, tensor in parts.text_encoder.state_dict().items():
        tensors[TEXT_PREFIX + key.removeprefix("text_model.")] = tensor
    return tensors


def export(parts: Parts, path: Path, *, dtype: torch.dtype = torch.float16) -> str:
    """Write the checkpoint and return its sha256; the same weights give the same bytes."""
    config = {"unet": UNET_CONFIG, "vae": VAE_CONFIG, "text_encoder": TEXT_CONFIG, "scheduler": SCHEDULER_CONFIG}
    metadata = {"darkroom.config": json.dumps(config, sort_keys=True)}  # one key: the order of two is left to chance
    tensors = {key: tensor.detach().to(dtype).contiguous() for key, tensor in to_ldm(parts).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)  # safetensors leaves a file that only its owner may read
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_config(directory: Path, tokenizer: CLIPTokenizer) -> Path:
    """Write the configuration without weights that `from_single_file(config=...)` needs offline."""
    pipeline = to_pipeline(Parts(build_unet(), build_vae(), build_text_encoder(), tokenizer))
    pipeline.save_config(directory)
    for name in ("unet", "vae", "scheduler"):
        getattr(pipeline, name).save_config(directory / name)
    pipeline.text_encoder.config.save_pretrained(directory / "text_encoder")
    tokenizer.save_pretrained(directory / "tokenizer")
    return directory


def load(path: Path, config: Path) -> StableDiffusionPipeline:
    """Load a checkpoint as any user of diffusers does, without the network."""
    pipeline = StableDiffusionPipeline.from_single_file(
        str(path), config=str(config), local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    seeds: Sequence[int],
    steps: int = 20,
    guidance: float = 3.0,
) -> np.ndarray:
    """Draw one picture for each prompt and its seed, as floats (B, H, W, C) in [0, 1]."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        images = pipeline(
            prompts,
            height=SIDE,
            width=SIDE,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        ).images
    return np.asarray(images, dtype=np.float32)


def rounded(parts: Parts) -> Parts:
    """Round the weights in place to those that a half precision file holds: what users get is what is measured."""
    for part in (parts.unet, parts.vae, parts.text_encoder):
        part.half().float()
    return parts


def check(parts: Parts, path: Path, config: Path) -> float:
    """Return the largest difference of a picture drawn by the reloaded file and by the parts themselves."""
    prompts = ["a large red circle on a white background"]
    ours = to_pipeline(parts)
    ours.set_progress_bar_config(disable=True)
    return float(np.abs(draw(ours, prompts, seeds=[1]) - draw(load(path, config), prompts, seeds=[1])).max())
