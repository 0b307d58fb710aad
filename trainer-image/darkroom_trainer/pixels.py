"""A picture as the VAE sees it: loaded, scaled, cropped and changed. `augmenting` says how it is changed.

Shapes: C channels, H and W in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from darkroom_trainer.dataset import load_rgb
from darkroom_trainer.items import Item


def to_pixels(item: Item) -> torch.Tensor:
    """Return a picture as its bucket sees it: (C, H, W) in [-1, 1]."""
    scaled = load_rgb(item.picture.path).resize(item.placement.scaled, Image.Resampling.LANCZOS)
    pixels_HWC = np.asarray(scaled.crop(item.crop), dtype=np.float32)
    pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()
    if item.changes.hue:
        pixels_CHW = shift_hue(pixels_CHW / 255, item.changes.hue) * 255
    if item.changes.gamma != 1:
        pixels_CHW = (pixels_CHW / 255).pow(item.changes.gamma) * 255
    if item.changes.mirrored:
        pixels_CHW = pixels_CHW.flip(-1)
    return pixels_CHW / 127.5 - 1


def shift_hue(pixels_CHW: torch.Tensor, degrees: float) -> torch.Tensor:
    """Turn the hue of colours in [0, 1] and keep their value and saturation (A. R. Smith's HSV, 1978)."""
    red, green, blue = pixels_CHW
    value_HW, which_HW = pixels_CHW.max(dim=0)
    chroma_HW = value_HW - pixels_CHW.min(dim=0).values
    sextants_CHW = torch.stack([green - blue, blue - red, red - green]) / chroma_HW.clamp(min=1e-12)
    sextants_CHW += torch.tensor([0.0, 2.0, 4.0]).view(3, 1, 1)
    hue_HW = sextants_CHW.gather(0, which_HW.unsqueeze(0))[0] + degrees / 60
    # A primary is V - C max(0, min(k, 4 - k, 1)), where k = (n + H) mod 6 and n = 5, 3, 1 for red, green, blue.
    turned_CHW = (torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1) + hue_HW) % 6
    return value_HW - chroma_HW * torch.minimum(turned_CHW, 4 - turned_CHW).clamp(0, 1)
