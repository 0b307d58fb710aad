"""A picture as the VAE sees it, and its mask: loaded, scaled, cropped and changed. `augmenting` says how it is changed.

Shapes: B batch, C channels, H and W.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from PIL import Image

from darkroom_api.masks import Mask
from darkroom_trainer.decoding import load_rgb
from darkroom_trainer.items import Item
from darkroom_trainer.masking import SOURCES

LATENT_PIXELS: Final = 8
"""Side of what one number of the latents stands for, in all families."""


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


def to_mask(item: Item, spec: Mask) -> torch.Tensor:
    """Return the mask of a picture as it is shown (1, H, W), each number the mean over what one latent stands for.

    A picture without one, which is one of the class, counts whole.
    """
    if item.picture.mask_sha256 is None:
        width, height = item.placement.bucket
        return torch.ones(1, height // LATENT_PIXELS, width // LATENT_PIXELS)
    # Not Lanczos as for pictures: it overshoots, so that a sharp mask would count a little of what it leaves out.
    scaled = SOURCES[spec.source].load(item.picture.path).resize(item.placement.scaled, Image.Resampling.BILINEAR)
    mask_1HW = torch.from_numpy(np.asarray(scaled.crop(item.crop), dtype=np.float32)).unsqueeze(0) / 255
    if item.changes.mirrored:
        mask_1HW = mask_1HW.flip(-1)
    return torch.nn.functional.avg_pool2d(mask_1HW, LATENT_PIXELS)


def mask_weights(masks_B1HW: torch.Tensor, spec: Mask) -> torch.Tensor:
    """Return what a masked loss is multiplied by before its mean is taken over all of each picture.

    As kohya's `apply_masked_loss`; the least weight and the division by the mean are OneTrainer's.
    """
    weights_B1HW = masks_B1HW.clamp(min=spec.unmasked_weight)
    if not spec.normalize:
        return weights_B1HW
    # A crop may miss its subject: nothing counts then, and 0 / 0 must not.
    tiny = torch.finfo(weights_B1HW.dtype).tiny
    return weights_B1HW / weights_B1HW.mean(dim=(1, 2, 3), keepdim=True).clamp(min=tiny)


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
