"""How each family's parts are built: configurations of diffusers and transformers from the shapes in a file.

A file may carry configurations in its metadata (`darkroom.config`) for what no shape says: heads and groups. Published
models have none, and get the published values: one row per family below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
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
"""The noise schedule of all families, sampled by DDIM (Song et al. 2020, arXiv 2010.02502): no randomness later."""


@dataclass(frozen=True)
class TextEncoderFile:
    """A text encoder inside a single file."""

    part: str
    """Its name in diffusers, which configurations and folders use too."""
    prefix: str
    kohya: str
    """What begins its layers' names in a LoRA file."""
    is_open_clip: bool = False
    has_projection: bool = False
    skipped_layers: int = 0
    """Last layers that a file holds but that the family never uses, so that diffusers leaves them out."""
    embedding: str = "emb_params"
    """The tensor's name in an embedding's file: A1111 takes any, if there is but one."""


@dataclass(frozen=True)
class Family:
    """What tells a family from the others once its file is recognised."""

    name: str
    """As in the API."""
    title: str
    text_encoders: tuple[TextEncoderFile, ...]
    num_levels: int
    """Resolutions of the UNet."""
    scaling_factor: float
    """Of the VAE's latents."""
    channels_per_head: int | None
    """Channels of a head of the UNet's attention; None: there are eight heads at every level."""
    resolution: int
    """Side in pixels of the square that the family was made for."""
    version: str
    """`ss_base_model_version` in kohya's metadata."""
    architecture: str
    """`modelspec.architecture` without what is trained upon it."""
    pooled: bool = False
    """Whether the UNet wants the prompt's pooled embedding and the picture's sizes as well (SDXL)."""
    penultimate: bool = False
    """Whether prompts are the last but one layer's states, without a last normalisation."""
    unet_by_file_names: bool = False
    """Whether a LoRA file calls the UNet's layers as the single file does, not as diffusers does."""


CLIP_L: Final = TextEncoderFile("text_encoder", "cond_stage_model.transformer.", "lora_te_")
SD15: Final = Family(
    name="SD15",
    title="SD 1.5",
    text_encoders=(CLIP_L,),
    num_levels=4,
    scaling_factor=0.18215,
    channels_per_head=None,
    resolution=512,
    version="sd_v1",
    architecture="stable-diffusion-v1",
)
SD2: Final = Family(
    name="SD2",
    title="SD 2.x",
    text_encoders=(
        TextEncoderFile("text_encoder", "cond_stage_model.model.", "lora_te_", is_open_clip=True, skipped_layers=1),
    ),
    num_levels=4,
    scaling_factor=0.18215,
    channels_per_head=64,
    resolution=512,
    version="sd_v2",
    architecture="stable-diffusion-v2-512",
)
SDXL: Final = Family(
    name="SDXL",
    title="SDXL",
    text_encoders=(
        TextEncoderFile("text_encoder", "conditioner.embedders.0.transformer.", "lora_te1_", embedding="clip_l"),
        TextEncoderFile(
            "text_encoder_2",
            "conditioner.embedders.1.model.",
            "lora_te2_",
            is_open_clip=True,
            has_projection=True,
            embedding="clip_g",
        ),
    ),
    num_levels=3,
    scaling_factor=0.13025,
    channels_per_head=64,
    resolution=1024,
    version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base",
    pooled=True,
    penultimate=True,
    unet_by_file_names=True,
)
FAMILIES: Final = {family.name: family for family in (SD15, SD2, SDXL)}


def unet_config(family: Family, shapes: Shapes) -> Config:
    """Return the UNet's configuration; `attention_head_dim` is diffusers' name for the number of heads."""
    levels = range(family.num_levels)
    channels = [shapes[f"{UNET}input_blocks.{3 * n + 1}.0.out_layers.3.weight"][0] for n in levels]
    attends = [f"{UNET}input_blocks.{3 * n + 1}.1.proj_in.weight" in shapes for n in levels]
    deepest = f"{UNET}input_blocks.{3 * (attends.index(True)) + 1}.1"
    down = ["CrossAttnDownBlock2D" if attending else "DownBlock2D" for attending in attends]
    config: Config = {
        "sample_size": family.resolution // 8,
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "cross_attention_dim": shapes[f"{deepest}.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": _heads(family, channels),
        "use_linear_projection": len(shapes[f"{deepest}.proj_in.weight"]) == 2,
    }
    return config | (_sdxl_config(shapes, attends) if family.pooled else {})


def _heads(family: Family, channels: list[int]) -> int | list[int]:
    if family.channels_per_head is None:
        return 8
    return [max(1, width // family.channels_per_head) for width in channels]


def _sdxl_config(shapes: Shapes, attends: list[bool]) -> Config:
    width = shapes[f"{UNET}label_emb.0.0.weight"][1]
    pooled = shapes[f"{SDXL.text_encoders[1].prefix}text_projection"][1]
    return {
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": width,
        "addition_time_embed_dim": (width - pooled) // 6,  # six numbers: original size, crop, target size
        "transformer_layers_per_block": [
            _depth(shapes, f"{UNET}input_blocks.{3 * n + 1}.1.") if attending else 1
            for n, attending in enumerate(attends)
        ],
    }


def _depth(shapes: Shapes, prefix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(".attn1.to_q.weight") for name in shapes)


def vae_config(family: Family, shapes: Shapes) -> Config:
    """Return the autoencoder's configuration."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"{VAE}encoder.down.{n}.block.0.conv2.weight"][0] for n in range(4)],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "sample_size": family.resolution,
        "scaling_factor": family.scaling_factor,
    }


def text_encoder_config(encoder: TextEncoderFile, shapes: Shapes) -> Config:
    """Return a text encoder's configuration; all published ones have heads of 64 channels."""
    own = {
        name.removeprefix(encoder.prefix): shape for name, shape in shapes.items() if name.startswith(encoder.prefix)
    }
    if encoder.is_open_clip:
        embedding, positions = own["token_embedding.weight"], own["positional_embedding"]
        mlp, ending = own["transformer.resblocks.0.mlp.c_fc.weight"], ".mlp.c_fc.weight"
    else:
        own = {name.removeprefix("text_model."): shape for name, shape in own.items()}
        embedding, positions = own["embeddings.token_embedding.weight"], own["embeddings.position_embedding.weight"]
        mlp, ending = own["encoder.layers.0.mlp.fc1.weight"], ".mlp.fc1.weight"
    vocabulary, width = embedding
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": mlp[0],
        "num_hidden_layers": sum(name.endswith(ending) for name in own) - encoder.skipped_layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": positions[0],
        "hidden_act": "gelu" if encoder.is_open_clip else "quick_gelu",
        "projection_dim": own["text_projection"][1] if encoder.has_projection else width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # the 2 of old configurations makes transformers take the largest id for it
        "pad_token_id": 0 if encoder.is_open_clip else vocabulary - 1,
    }
