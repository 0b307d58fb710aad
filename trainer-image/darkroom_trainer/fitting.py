"""Doing the same thing in a way that needs less memory, when the device has no room for the usual way.

For what stands alone: encoding a picture, painting one. What a step does about it must last and be part of the state;
that is `adapting`'s.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from diffusers import AutoencoderKL

LOG: Final = logging.getLogger(__name__)

TILE_PIXELS: Final = 512
"""Side of a tile, if the VAE was not made with smaller pictures: a picture up to this size gains nothing by tiles."""
_SCALE: Final = 8
"""Pixels of a picture's side that one of its latent's stands for."""

T = TypeVar("T")


@dataclass
class Fitting:
    """Ways of doing one thing, the usual one first; one that did not fit is not tried again."""

    what: str
    """For the log: the end of "too little memory to"."""
    way: int = 0

    def do(self, *ways: Callable[[], T]) -> T:
        """Return what the first way returns that the memory is enough for.

        Raises:
            torch.OutOfMemoryError: It is not even for the last.
        """
        while True:
            try:
                return ways[self.way]()
            except torch.OutOfMemoryError as error:
                if self.way + 1 == len(ways):
                    raise
                lacking = in_a_line(error)
            # Only here the traceback is gone, and with it what it held.
            self.way += 1
            release_memory()
            LOG.warning("Too little memory to %s, so it is done with less: %s", self.what, lacking)


def cut(items: Sequence[T], limit: int | None) -> list[Sequence[T]]:
    """Return items in groups of a limit, in their order; all in one without a limit."""
    size = limit or len(items) or 1
    return [items[start : start + size] for start in range(0, len(items), size)]


def in_a_line(error: torch.OutOfMemoryError) -> str:
    """Return the part of torch's message that tells how much was asked for and how much was there."""
    return " ".join(str(error).splitlines()[0].split())[:300]


def release_memory() -> None:
    """Give back what nothing uses any more: an interrupted step leaves cycles, and blocks of the wrong size."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def tiled(vae: AutoencoderKL) -> Iterator[None]:
    """Let a VAE work on overlapping tiles: a little different, since each is normalised by itself."""
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    before = {name: getattr(vae, name) for name in names}
    vae.use_tiling = True
    vae.tile_sample_min_size = min(TILE_PIXELS, vae.tile_sample_min_size)
    vae.tile_latent_min_size = vae.tile_sample_min_size // _SCALE
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
