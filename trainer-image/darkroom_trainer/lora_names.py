"""What kohya's LoRA files call the layers of a model: names that A1111, ComfyUI, kohya and diffusers all know."""

from __future__ import annotations

from typing import Final

from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.families.naming import attending_up_blocks, unet_key

_UNET: Final = "lora_unet_"


def layer_names(model: StableDiffusion, part: str, modules: list[str]) -> dict[str, str]:
    """Return the files' names of a part's layers, by their own.

    SDXL's UNet goes by the names in single files, since A1111 reads no others there; that of SD 1.5 and 2.x by those of
    diffusers. Text encoders keep `text_model`, which transformers dropped: diffusers would not mind, the others would
    silently leave the layer out.
    """
    if part != UNET_PART:
        prefix = next(encoder.file.kohya for encoder in model.text_encoders if encoder.file.part == part)
        return {it: _flat(prefix, f"text_model.{it.removeprefix('text_model.')}") for it in modules}
    if not model.family.unet_by_file_names:
        return {it: _flat(_UNET, it) for it in modules}
    layers, attending = model.unet.config.layers_per_block, attending_up_blocks(modules)
    return {it: _flat(_UNET, unet_key(it, layers_per_block=layers, attending=attending)) for it in modules}


def _flat(prefix: str, module: str) -> str:
    return prefix + module.replace(".", "_")
