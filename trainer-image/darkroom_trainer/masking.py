"""Where a picture's mask comes from, and whether it suits it. `pixels` brings it to the size of the latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from darkroom_api.masks import MASK_ENDING
from darkroom_trainer.buckets import Size
from darkroom_trainer.decoding import RejectedError, check_picture, load_alpha, load_grey


@dataclass(frozen=True)
class Source:
    """Where masks lie."""

    load: Callable[[Path], Image.Image]
    """Takes a picture's file and returns its mask in 8 bits of grey, upright."""
    inspect: Callable[[Path, Size], str]
    """Takes a picture's file and upright size, and returns the SHA-256 of the file that its mask is read from.

    Raises RejectedError where the picture has no mask or one that does not suit it.
    """


def mask_path(picture: Path) -> Path:
    """Return where a picture's mask lies if it is a file."""
    return picture.with_name(picture.stem + MASK_ENDING)


def is_mask(path: Path) -> bool:
    """Tell whether a file is a mask, and so no picture."""
    return path.name.lower().endswith(MASK_ENDING)


def _inspect_file(picture: Path, size: Size) -> str:
    path = mask_path(picture)
    what = f"its mask {path.name}"
    if not path.is_file():
        raise RejectedError(f"{what} is missing")
    data = path.read_bytes()
    try:
        found = check_picture(data)
    except RejectedError as problem:
        raise RejectedError(f"{what} {problem}") from problem
    if found != size:
        raise RejectedError(f"{what} has {found[0]}x{found[1]} pixels, but the picture {size[0]}x{size[1]}")
    if load_grey(path).getextrema() == (0, 0):
        raise RejectedError(f"{what} is black all over")
    return hashlib.sha256(data).hexdigest()


def _inspect_alpha(picture: Path, _size: Size) -> str:
    if load_alpha(picture).getextrema() == (0, 0):
        raise RejectedError("is transparent all over")
    return hashlib.sha256(picture.read_bytes()).hexdigest()


SOURCES: Final = {
    "Alpha": Source(load_alpha, _inspect_alpha),
    "File": Source(lambda picture: load_grey(mask_path(picture)), _inspect_file),
}
"""By `Mask.source`."""
