"""Folders of pictures in kohya's layout, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZES = ((64, 64), (96, 64), (64, 96), (100, 100))


def draw(size: tuple[int, int], *, seed: int) -> Image.Image:
    """Draw coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def write_pictures(
    root: Path, *, folder: str = "2_sks robot", sizes: Sequence[tuple[int, int]] = SIZES, suffix: str = ".png"
) -> Path:
    """Write pictures with captions below a folder of the root and return the root."""
    directory = root / folder
    directory.mkdir(parents=True, exist_ok=True)
    for index, size in enumerate(sizes):
        draw(size, seed=index).save(directory / f"{index}{suffix}")
        (directory / f"{index}.txt").write_text(f"sks robot, thing {index}, blue\n")
    return root


def write_masks(root: Path) -> Path:
    """Write a mask beside every picture below the root and return the root: a white ellipse, off its middle."""
    for path in sorted(root.glob("*/[0-9]*.png")):
        with Image.open(path) as picture:
            width, height = picture.size
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).ellipse((width // 3, 0, width, height // 2), fill="white")
        mask.save(path.with_name(f"{path.stem}-masklabel.png"))
    return root
