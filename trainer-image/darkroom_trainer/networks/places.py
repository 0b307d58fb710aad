"""Where networks sit: the layers of a base model that kohya adapts, with the names that its files have for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.lora_names import layer_names

_TRANSFORMERS: Final = ("Transformer2DModel",)
_CONVOLUTIONAL: Final = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_TEXT_ENCODER_LAYERS: Final = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Place:
    """A layer of the base model that a network adapts."""

    part: str
    """As in `StableDiffusion.parts`."""
    module: str
    """The layer's path in its part."""
    names: tuple[str, ...]
    """The layer's names in files: kohya's first, then others that are seen for it."""
    layer: torch.nn.Linear | torch.nn.Conv2d

    @property
    def name(self) -> str:
        """Return the layer's name in our files."""
        return self.names[0]

    @property
    def is_spatial(self) -> bool:
        """Tell whether the layer sees a pixel's neighbours; such layers have a rank of their own."""
        return isinstance(self.layer, torch.nn.Conv2d) and self.layer.kernel_size != (1, 1)


def find_places(model: StableDiffusion, part: str, *, convolutions: bool) -> list[Place]:
    """Return the layers of a part that kohya adapts, in the model's own order.

    Args:
        model: The base model.
        part: One of its parts.
        convolutions: Whether resnets, downsamplers and upsamplers of a UNet take part.
    """
    module = model.parts[part]
    layers = unet_layers(module, convolutions=convolutions) if part == UNET_PART else text_encoder_layers(module)
    names = layer_names(model, part, list(layers))
    return [Place(part, path, names[path], layer) for path, layer in layers.items()]


def unet_layers(unet: torch.nn.Module, *, convolutions: bool) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
    """Return every linear layer and convolution inside a transformer, and if told inside what convolves, by path."""
    kinds = _TRANSFORMERS + (_CONVOLUTIONAL if convolutions else ())
    inside = tuple(f"{path}." for path, module in unet.named_modules() if type(module).__name__ in kinds)
    return {path: layer for path, layer in _adaptable(unet).items() if path.startswith(inside)}


def text_encoder_layers(text_encoder: torch.nn.Module) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
    """Return the four projections of attention and the two layers of each MLP, by path."""
    return {path: layer for path, layer in _adaptable(text_encoder).items() if path.endswith(_TEXT_ENCODER_LAYERS)}


def _adaptable(module: torch.nn.Module) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
    return {path: it for path, it in module.named_modules() if isinstance(it, (torch.nn.Linear, torch.nn.Conv2d))}
