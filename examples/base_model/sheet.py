"""Put pictures beside each other, because a score never shows what an eye sees at once."""

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from examples.base_model.scenes import sample_scene

MARGIN = 4


def sample_prompts(count: int, *, seed: int) -> list[str]:
    """Return captions of scenes drawn at random."""
    rng = random.Random(seed)
    return [sample_scene(rng).caption for _ in range(count)]


def write_sheet(images: np.ndarray, path: Path, *, columns: int, captions: list[str] | None = None) -> None:
    """Write pictures (B, H, W, C) in [0, 1] as one PNG, with captions below when they are given."""
    count, height, width, _ = images.shape
    foot = 24 if captions else 0
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width + MARGIN), rows * (height + foot + MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x, y = (index % columns) * (width + MARGIN), (index // columns) * (height + foot + MARGIN)
        sheet.paste(Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)), (x, y))
        if captions:
            text = captions[index].replace(" background", "").removeprefix("a ")
            half = len(text) // 2
            cut = text.find(" ", half)
            draw.text(
                (x, y + height), text if cut < 0 else f"{text[:cut]}\n{text[cut + 1 :]}", fill="black", font_size=9
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
