"""What a checkpoint is, judged by the names and shapes in its header before anything is loaded."""

from __future__ import annotations

from typing import Final

from darkroom_api.failures import FailureReason
from darkroom_api.objectives import Objective
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import FAMILIES, SD2, UNET, VAE, Family, Shapes

FIRST_CONVOLUTION: Final = f"{UNET}input_blocks.0.0.weight"
FULL_WIDTH: Final = 320
"""Channels that the UNet's first convolution makes in SD 1.x, SD 2.x and SDXL."""
SD2_V_SIDE: Final = 768

SIGNS: Final = (
    ("lora_", "a LoRA"),
    ("emb_params", "a textual inversion embedding"),
    ("conditioner.embedders.1.model.", "SDXL"),
    ("conditioner.embedders.0.model.", "the refiner of SDXL"),
    (f"{UNET}label_emb.", "SDXL"),
    ("cond_stage_model.model.", "SD2"),
    (f"{UNET}joint_blocks.", "SD 3"),
    (f"{UNET}double_blocks.", "FLUX.1"),
    ("double_blocks.", "FLUX.1"),
    ("down_blocks.", "one part of a diffusers folder; give the folder, its address ending in /"),
    ("text_model.", "a text encoder alone"),
    ("encoder.conv_in.", "a VAE alone"),
)
"""Beginnings of names that only one kind of file has, surest first."""
CONDITIONED: Final = {
    9: "an inpainting model (9 input channels)",
    8: "InstructPix2Pix (8 input channels)",
    5: "a depth model of SD 2 (5 input channels)",
}


def recognise(shapes: Shapes) -> str:
    """Return the family's name in the API, or in words what else the file is."""
    found = next((what for start, what in SIGNS if any(name.startswith(start) for name in shapes)), None)
    if FIRST_CONVOLUTION not in shapes:
        return found or "no Stable Diffusion checkpoint"
    channels = shapes[FIRST_CONVOLUTION][1]
    return (found or "SD15") if channels == 4 else CONDITIONED.get(channels, f"a UNet of {channels} input channels")


def native_side(family: Family, shapes: Shapes, objective: Objective) -> int | None:
    """Return the side in pixels of the pictures that a model was made with; None for a small one, made for tests."""
    if shapes.get(FIRST_CONVOLUTION, (0,))[0] != FULL_WIDTH:
        return None
    return SD2_V_SIDE if family is SD2 and objective.prediction_type == "VPrediction" else family.resolution


def check_family(shapes: Shapes, name: str, *, family: str | None) -> Family:
    """Return a file's family, and refuse one that is of another than the spec says or lacks one of its parts.

    Args:
        shapes: What the file holds.
        name: Its name.
        family: What the spec says, if it does.

    Raises:
        RunError: With what the file is.
    """
    found = recognise(shapes)
    if found not in FAMILIES or family not in (None, found):
        given = f"spec.baseModel.family: {family} is given, but" if family else "spec.baseModel.uri:"
        allowed = family or "SD15, SD2 or SDXL"
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"{given} {name} is {found}; allowed: a whole {allowed} checkpoint in one file, or a folder of diffusers",
        )
    known = FAMILIES[found]
    encoders = "text encoder" if len(known.text_encoders) == 1 else "text encoders"
    parts = [(UNET, "UNet"), (VAE, "VAE"), *((encoder.prefix, encoders) for encoder in known.text_encoders)]
    missing = [part for start, part in parts if not any(name.startswith(start) for name in shapes)]
    if missing:
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"spec.baseModel.uri: {name} lacks {' and '.join(dict.fromkeys(missing))}; "
            f"a {known.title} checkpoint holds UNet, VAE and {encoders}",
        )
    return known
