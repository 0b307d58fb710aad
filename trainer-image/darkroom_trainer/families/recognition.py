"""What a checkpoint is, judged by the names and shapes in its header before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError
from darkroom_trainer.safetensors_file import Header

Shapes = Mapping[str, tuple[int, ...]]

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
TEXT_ENCODER: Final = "cond_stage_model.transformer."
FIRST_CONVOLUTION: Final = f"{UNET}input_blocks.0.0.weight"
FULL_WIDTH: Final = 320
"""Channels that the UNet's first convolution makes in SD 1.x, SD 2.x and SDXL."""

SIGNS: Final = (
    ("lora_", "a LoRA"),
    ("emb_params", "a textual inversion embedding"),
    ("conditioner.embedders.1.model.", "SDXL"),
    ("conditioner.embedders.0.model.", "the refiner of SDXL"),
    (f"{UNET}label_emb.", "SDXL"),
    ("cond_stage_model.model.", "SD 2.x"),
    (f"{UNET}joint_blocks.", "SD 3"),
    (f"{UNET}double_blocks.", "FLUX.1"),
    ("double_blocks.", "FLUX.1"),
    ("down_blocks.", "one part of a diffusers folder; single files only"),
    ("text_model.", "a text encoder alone"),
    ("encoder.conv_in.", "a VAE alone"),
)
"""Beginnings of names that only one kind of file has, surest first."""
CONDITIONED: Final = {9: "an inpainting model of SD 1.x (9 input channels)", 8: "InstructPix2Pix (8 input channels)"}
PARTS: Final = ((UNET, "UNet"), (VAE, "VAE"), (TEXT_ENCODER, "text encoder"))


def recognise(shapes: Shapes) -> str:
    """Return the family's name in the API, or in words what else the file is."""
    for start, what in SIGNS:
        if any(name.startswith(start) for name in shapes):
            return what
    if FIRST_CONVOLUTION not in shapes:
        return "no Stable Diffusion checkpoint"
    channels = shapes[FIRST_CONVOLUTION][1]
    return "SD15" if channels == 4 else CONDITIONED.get(channels, f"a UNet of {channels} input channels")


def is_full_size(shapes: Shapes) -> bool:
    """Tell whether a checkpoint is as large as its family's, not a small one of the same topology for tests."""
    return shapes.get(FIRST_CONVOLUTION, (0,))[0] == FULL_WIDTH


def check_family(header: Header, path: Path, *, family: str) -> None:
    """Refuse a file that is of another family than the spec says, or lacks one of its parts.

    Raises:
        RunError: With what the file is.
    """
    found = recognise(header.shapes)
    if found != family:
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"spec.baseModel.family: {family} is given, but {path.name} is {found}; allowed: a whole {family} "
            "checkpoint in one .safetensors file",
        )
    missing = [part for start, part in PARTS if not any(name.startswith(start) for name in header.shapes)]
    if missing:
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"spec.baseModel.uri: {path.name} lacks {' and '.join(missing)}; "
            f"a {family} checkpoint holds UNet, VAE and text encoder",
        )
