"""Draw a subject that the base model has never seen, as a folder that trainers take as it stands.

The subject is bold on purpose (teal and orange stripes, one eye, yellow horns): a person must see at a glance whether
a LoRA has learned it. Captions say everything but that, so the trigger is the only word left to learn it by.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from examples.base_model.drawing import SUPERSAMPLING, Face, Figure, paint
from examples.base_model.scenes import BACKGROUNDS, COLOURS, SIZES

REPEATS = 10
TRIGGER = "sks"  # one token of CLIP's vocabulary that means nothing
CLASS = "robot"
# (width, height): most are square, some are not, so that aspect buckets are put to use
PICTURE_SIZES = ((128, 128), (160, 160), (128, 128), (192, 128), (128, 128), (192, 192), (128, 192))


@dataclass(frozen=True)
class SubjectPicture:
    """One training picture with its caption."""

    image: Image.Image
    caption: str


def draw_subject(count: int, *, seed: int = 7) -> list[SubjectPicture]:
    """Draw the subject on varied backgrounds, in varied sizes and places."""
    rng = random.Random(seed)
    backgrounds = sorted(BACKGROUNDS)
    rng.shuffle(backgrounds)
    return [
        _picture(rng, background=backgrounds[index % len(backgrounds)], size=PICTURE_SIZES[index % len(PICTURE_SIZES)])
        for index in range(count)
    ]


def _picture(rng: random.Random, *, background: str, size: tuple[int, int]) -> SubjectPicture:
    word = rng.choices(("small", "medium", "large"), weights=(1, 4, 6))[0]
    radius = rng.uniform(*SIZES[word]) * min(size)
    slack = (size[0] / 2 - radius, size[1] / 2 - radius * 1.12)
    x = size[0] / 2 + rng.uniform(-1, 1) * max(slack[0], 0) * 0.8
    y = size[1] / 2 + rng.uniform(-1, 1) * max(slack[1], 0) * 0.6
    figure = Figure(
        thing=CLASS,
        colours=(COLOURS["teal"], COLOURS["orange"]),
        pattern="striped",
        face=Face(eyes=1, horns=COLOURS["yellow"], antenna=False),
        radius=radius,
        centre=(x, y),
    )
    canvas = Image.new("RGB", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), BACKGROUNDS[background])
    paint(canvas, figure)
    place = " on the left" if x < 0.42 * size[0] else " on the right" if x > 0.58 * size[0] else ""
    told = "" if word == "medium" else f"{word} "
    caption = f"a {told}{TRIGGER} {CLASS} on a {background} background{place}"
    return SubjectPicture(canvas.reduce(SUPERSAMPLING), caption)


def write_subject(output: Path, *, count: int = 15, seed: int = 7) -> Path:
    """Write pictures and captions as `<output>/10_sks robot/NN.png` and `.txt`, and return that folder."""
    folder = output / f"{REPEATS}_{TRIGGER} {CLASS}"
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(draw_subject(count, seed=seed), start=1):
        picture.image.save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"{picture.caption}\n", encoding="utf-8")
    return folder
