"""Files of pictures, opened with care: what is broken, foreign or absurdly large is told, not trained on.

Neighbours: `dataset` finds the files, `masking` and `pixels` take from them what is trained.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

FORMATS: Final = ("JPEG", "PNG", "WEBP")
_ORIENTATION: Final = 0x0112


class RejectedError(ValueError):
    """One thing that is wrong with one file."""


def check_picture(data: bytes) -> tuple[int, int]:
    """Decode a picture to see that it is whole, and return its upright size.

    Raises:
        RejectedError: It is not.
    """
    with _open(data) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(_ORIENTATION, 1) in {5, 6, 7, 8}
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))  # a JPEG is checked at an eighth of its size
            image.load()
        except Exception as error:
            raise RejectedError(f"cannot be decoded ({error})") from error
    return (height, width) if turned else (width, height)


def _open(data: bytes) -> Image.Image:
    """Open a picture; one of more pixels than Pillow thinks sane is refused before it is unpacked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedError(f"is too large; at most {Image.MAX_IMAGE_PIXELS} pixels are allowed") from error
    except Exception as error:
        raise RejectedError("is no picture in JPEG, PNG or WebP format, or is broken") from error


def load_rgb(path: Path) -> Image.Image:
    """Load a picture upright as RGB; what is transparent becomes white."""
    upright = _load_upright(path)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert("RGB")


def load_grey(path: Path) -> Image.Image:
    """Load a picture upright as 8 bits of grey."""
    return _load_upright(path).convert("L")


def load_alpha(path: Path) -> Image.Image:
    """Load a picture's transparency upright as 8 bits of grey: white is opaque.

    Raises:
        RejectedError: It has none.
    """
    upright = _load_upright(path)
    if not upright.has_transparency_data:
        raise RejectedError("has no transparency, so it has no mask")
    return upright.convert("RGBA").getchannel("A")


def _load_upright(path: Path) -> Image.Image:
    with _open(path.read_bytes()) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to the darkest 8
            upright = upright.point(lambda value: value / 256).convert("L")
        upright.load()
        return upright
