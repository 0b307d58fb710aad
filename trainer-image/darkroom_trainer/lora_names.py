"""What kohya's LoRA files call the layers of a model: names that A1111, ComfyUI, kohya and diffusers all know."""

from __future__ import annotations

from typing import Final

from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.families.naming import attending_up_blocks, unet_key

_UNET: Final = "lora_unet_"
_FIRST_OF_TWO: Final = "lora_te1_"
"""What some trainers call the only text encoder too."""


def layer_names(model: StableDiffusion, part: str, modules: list[str]) -> dict[str, tuple[str, ...]]:
    """Return what files call a part's layers, by their own names: first what ours do, then what others' may.

    SDXL's UNet goes by the names in single files, since A1111 reads no others there; that of SD 1.5 and 2.x by those of
    diffusers. Text encoders keep `text_model`, which transformers dropped: diffusers would not mind, the others would
    silently leave the layer out.
    """
    if part != UNET_PART:
        return {it: _text_encoder_names(model, part, it) for it in modules}
    layers, attending = model.unet.config.layers_per_block, attending_up_blocks(modules)
    names: dict[str, tuple[str, ...]] = {
        it: (_flat(_UNET, it), _flat(_UNET, unet_key(it, layers_per_block=layers, attending=attending)))
        for it in modules
    }
    return {it: found[::-1] for it, found in names.items()} if model.family.unet_by_file_names else names


def _text_encoder_names(model: StableDiffusion, part: str, module: str) -> tuple[str, ...]:
    prefix = next(encoder.file.kohya for encoder in model.text_encoders if encoder.file.part == part)
    prefixes = [prefix] if len(model.text_encoders) > 1 else [prefix, _FIRST_OF_TWO]
    bare = module.removeprefix("text_model.")
    return tuple(_flat(start, path) for path in (f"text_model.{bare}", bare) for start in prefixes)


def _flat(prefix: str, module: str) -> str:
    return prefix + module.replace(".", "_")
