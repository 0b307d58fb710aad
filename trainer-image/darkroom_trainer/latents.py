"""The VAE's view of every picture, encoded once: without this half of a step would be the VAE's.

Mean and deviation are kept, not one drawn latent, so the encoder's own noise stays alive. A picture is known by its
content, its place in a bucket and whether it is mirrored (the latent of a mirrored picture is not the mirrored latent);
the folder lives and dies with the pod, so it belongs to one VAE. What is cropped or coloured at random is shown once
and never again, so it is encoded where it is shown.

What was looked at once stays in memory as long as it fits into an eighth of the pod's: at 512 pixels 8000 pictures in a
GiB. Whatever were thrown out to make room would be wanted again within an epoch, so nothing is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from darkroom_api.failures import FailureReason
from darkroom_api.masks import Mask
from darkroom_trainer.errors import RunError
from darkroom_trainer.fitting import Fitting, tiled
from darkroom_trainer.host_memory import host_memory_bytes
from darkroom_trainer.items import Item
from darkroom_trainer.offloading import at_work
from darkroom_trainer.pixels import mask_weights, to_mask, to_pixels

_MEMORY_SHARE: Final = 8
"""Of the pod's memory one part of so many; base model, gradients and optimizer need the others."""

_Tensors = dict[str, torch.Tensor]
"""Mean and deviation (C, H, W) of an encoded picture, or its mask (1, H, W)."""


class LatentCache:
    """Encoded pictures and their masks on the local disk, and copies of as many as fit in memory.

    Args:
        directory: Where they lie.
        vae: Encodes them, on the device that it is on now.
        mask: Which masks they have, if any.
        may_tile: Whether a picture that does not fit into the device's memory may be encoded in tiles.
        memory_bytes: How much of the host's memory they may take; by default an eighth of the pod's.
        processes: How many of the run's processes share that.
    """

    def __init__(
        self,
        directory: Path,
        vae: AutoencoderKL,
        *,
        mask: Mask | None = None,
        may_tile: bool = False,
        memory_bytes: int | None = None,
        processes: int = 1,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._vae, self._mask = directory, vae, mask
        self._device, self.may_tile, self.has_tiled = vae.device, may_tile, False
        self._room = (host_memory_bytes() // _MEMORY_SHARE if memory_bytes is None else memory_bytes) // processes
        self._held: dict[str, _Tensors] = {}

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
            self._encoded(item)
            if self._mask:
                self._masked(item, self._mask)

    def draw(self, items: Sequence[Item], generator: torch.Generator) -> torch.Tensor:
        """Return unscaled latents (B, C, H, W) of a batch, drawn from each picture's distribution, on the CPU."""
        mean_BCHW, deviation_BCHW = self._read(items)
        return mean_BCHW + deviation_BCHW * torch.randn(mean_BCHW.shape, generator=generator)

    def means(self, items: Sequence[Item]) -> torch.Tensor:
        """Return unscaled latents (B, C, H, W) of a batch without the encoder's noise, on the CPU."""
        return self._read(items)[0]

    def weights(self, items: Sequence[Item]) -> torch.Tensor | None:
        """Return how much each place of a batch counts in the loss (B, 1, H, W), on the CPU; None without masks."""
        if self._mask is None:
            return None
        return mask_weights(torch.stack([self._masked(item, self._mask) for item in items]), self._mask)

    def _read(self, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._encoded(item) for item in items]
        return torch.stack([part["mean"] for part in parts]), torch.stack([part["deviation"] for part in parts])

    def _encoded(self, item: Item) -> _Tensors:
        if not item.changes.are_known_ahead:
            return self._encode(item)
        return self._kept(_key(item), lambda: self._encode(item))

    def _encode(self, item: Item) -> _Tensors:
        """Encode a picture, in tiles if the memory is not enough and that is allowed.

        Each picture is tried whole: what earlier ones were done with would else depend on where a run resumed.
        """
        with at_work([self._vae], self._device):
            if not self.may_tile:
                return _encode(item, self._vae)
            fitting = Fitting(f"encode {item.picture.name} whole")
            return fitting.do(lambda: _encode(item, self._vae), lambda: self._encode_tiled(item))

    def _encode_tiled(self, item: Item) -> _Tensors:
        with tiled(self._vae):
            encoded = _encode(item, self._vae)
        self.has_tiled = True
        return encoded

    def _masked(self, item: Item, spec: Mask) -> torch.Tensor:
        if item.changes.corner is not None or item.picture.mask_sha256 is None:
            return to_mask(item, spec)
        key = f"{_key(item)}-mask{item.picture.mask_sha256}"
        return self._kept(key, lambda: {"mask": to_mask(item, spec)})["mask"]

    def _kept(self, key: str, make: Callable[[], _Tensors]) -> _Tensors:
        if key in self._held:
            return self._held[key]
        path = self._directory / f"{key}.safetensors"
        if path.exists():
            tensors = load_file(path)
        else:
            tensors = make()
            part = path.with_suffix(f".part-{os.getpid()}")  # other processes of the run may encode the same
            save_file(tensors, part)
            part.replace(path)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size <= self._room:
            self._room -= size
            self._held[key] = tensors
        return tensors


def _key(item: Item) -> str:
    (width, height), (scaled_width, scaled_height) = item.placement.bucket, item.placement.scaled
    mirrored = "-mirrored" if item.changes.mirrored else ""
    return f"{item.picture.sha256}-{width}x{height}of{scaled_width}x{scaled_height}{mirrored}"


@torch.no_grad()
def _encode(item: Item, vae: AutoencoderKL) -> _Tensors:
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
