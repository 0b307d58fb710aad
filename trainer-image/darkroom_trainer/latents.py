"""The VAE's view of every picture, encoded once: without this half of a step would be the VAE's.

Mean and deviation are kept, not one drawn latent, so the encoder's own noise stays alive. A picture is known by its
content, its place in a bucket and whether it is mirrored (the latent of a mirrored picture is not the mirrored latent);
the folder lives and dies with the pod, so it belongs to one VAE. What is cropped or coloured at random is shown once
and never again, so it is encoded where it is shown.

Pictures stay in memory once they were read, as long as they fit into an eighth of the pod's: at 512 pixels 8000 in a
GiB. Whatever were thrown out to make room would be wanted again within an epoch, so nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError
from darkroom_trainer.host_memory import host_memory_bytes
from darkroom_trainer.items import Item
from darkroom_trainer.pixels import to_pixels

_MEMORY_SHARE: Final = 8
"""Of the pod's memory one part of so many; base model, gradients and optimizer need the others."""

_Encoded = dict[str, torch.Tensor]
"""Mean and deviation (C, H, W)."""


class LatentCache:
    """Encoded pictures on the local disk, and copies of as many as fit in memory.

    Args:
        directory: Where they lie.
        vae: Encodes them; on the device that it is on at that time.
        memory_bytes: How much of the memory they may take; by default an eighth of the pod's.
    """

    def __init__(self, directory: Path, vae: AutoencoderKL, *, memory_bytes: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._vae = directory, vae
        self._room = host_memory_bytes() // _MEMORY_SHARE if memory_bytes is None else memory_bytes
        self._held: dict[str, _Encoded] = {}

    def fill(self, items: Sequence[Item], *, on_item: Callable[[int], None]) -> None:
        """Encode what is not there yet, in fp32.

        Args:
            items: The pictures, with changes that are known ahead.
            on_item: Called before each picture with its number from 0; may raise.

        Raises:
            RunError: A latent is not finite.
        """
        for index, item in enumerate(items):
            on_item(index)
            path = self._path(_key(item))
            if not path.exists():
                save_file(_encode(item, self._vae), path.with_suffix(".part"))
                path.with_suffix(".part").rename(path)

    def draw(self, items: Sequence[Item], generator: torch.Generator) -> torch.Tensor:
        """Return unscaled latents (B, C, H, W) of a batch, drawn from each picture's distribution, on the CPU."""
        mean_BCHW, deviation_BCHW = self._read(items)
        return mean_BCHW + deviation_BCHW * torch.randn(mean_BCHW.shape, generator=generator)

    def means(self, items: Sequence[Item]) -> torch.Tensor:
        """Return unscaled latents (B, C, H, W) of a batch without the encoder's noise, on the CPU."""
        return self._read(items)[0]

    def _read(self, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._load(_key(item)) if item.changes.are_known_ahead else _encode(item, self._vae) for item in items]
        return torch.stack([part["mean"] for part in parts]), torch.stack([part["deviation"] for part in parts])

    def _load(self, key: str) -> _Encoded:
        if key in self._held:
            return self._held[key]
        encoded = load_file(self._path(key))
        size = sum(tensor.nbytes for tensor in encoded.values())
        if size <= self._room:
            self._room -= size
            self._held[key] = encoded
        return encoded

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.safetensors"


def _key(item: Item) -> str:
    (width, height), (scaled_width, scaled_height) = item.placement.bucket, item.placement.scaled
    mirrored = "-mirrored" if item.changes.mirrored else ""
    return f"{item.picture.sha256}-{width}x{height}of{scaled_width}x{scaled_height}{mirrored}"


@torch.no_grad()
def _encode(item: Item, vae: AutoencoderKL) -> _Encoded:
    pixels_1CHW = to_pixels(item).unsqueeze(0).to(vae.device)
    distribution = vae.encode(pixels_1CHW).latent_dist
    mean, deviation = distribution.mean[0].cpu().contiguous(), distribution.std[0].cpu().contiguous()
    if not (mean.isfinite().all() and deviation.isfinite().all()):
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"the VAE of spec.baseModel.uri gives numbers that are not finite for {item.picture.name}",
            advice="Give a base model with a sound VAE, or look at that picture.",
        )
    return {"mean": mean, "deviation": deviation}
