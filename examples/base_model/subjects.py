"""Draw what the base model has never seen, as folders that trainers take as they stand: characters and a style.

They are bold on purpose: a person must see at a glance whether a training has learned them. Captions say everything
but what is new, so the trigger is the only word left to learn it by. Pictures of the class without the new features
are the regularisation set, and the hardest negatives of a detector.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from examples.base_model.drawing import LIGHT, Face, blank, figure_of, floor, paint, render
from examples.base_model.scenes import BACKGROUNDS, COLOURS, Scene, place_scene, sample_scene

REPEATS = 10
# (width, height): most are square, some are not, so that aspect buckets are put to use
PICTURE_SIZES = ((128, 128), (160, 160), (128, 128), (192, 128), (128, 128), (192, 192), (128, 192))
HEADROOM = 0.12  # of the radius: what hats and horns need above a thing
OUTLINE = 0.03  # of the short side: the dark line of the style


@dataclass(frozen=True)
class Picture:
    """A training picture with its caption."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Subject:
    """A character, or a style where there is no face: what it looks like and the words that call it."""

    trigger: str
    noun: str
    colours: tuple[str, str] = ("", "")
    pattern: str = "plain"
    face: Face | None = None

    @property
    def folder(self) -> str:
        """Name the folder as kohya's trainers want it."""
        return f"{REPEATS}_{self.trigger} {self.noun}"


# Triggers are one token of CLIP's vocabulary and mean nothing.
SUBJECTS = {
    "robot": Subject("sks", "robot", ("teal", "orange"), "striped", Face(1, horns=COLOURS["yellow"], antenna=False)),
    "cat": Subject("ohwx", "cat", ("yellow", "yellow"), "plain", Face(2, hat=COLOURS["blue"], mask=LIGHT)),
    "monster": Subject("vox", "monster", ("green", "green"), "plain", Face(3, horns=COLOURS["purple"])),
    "style": Subject("lun", "style"),
}


def draw_subject(name: str, count: int, *, seed: int = 7) -> list[Picture]:
    """Draw a subject on varied backgrounds, in varied sizes and places.

    Raises:
        ValueError: There is no subject of that name.
    """
    if name not in SUBJECTS:
        raise ValueError(f"subject: got {name!r}; allowed: {', '.join(SUBJECTS)}")
    subject, rng = SUBJECTS[name], random.Random(seed)
    draw: Callable[..., Picture] = _draw_style if subject.face is None else _draw_character
    backgrounds = sorted(BACKGROUNDS)
    rng.shuffle(backgrounds)
    return [
        draw(
            subject,
            rng,
            background=backgrounds[index % len(backgrounds)],
            size=PICTURE_SIZES[index % len(PICTURE_SIZES)],
        )
        for index in range(count)
    ]


def draw_class(noun: str, count: int, *, seed: int = 8) -> list[Picture]:
    """Draw ordinary pictures of a class: the regularisation set of a subject, and the negatives nearest to it."""
    rng = random.Random(seed)
    scenes = [place_scene(rng, thing=noun, colours=_two_colours(rng), pattern=_pattern(rng)) for _ in range(count)]
    return [Picture(render(scene), scene.caption) for scene in scenes]


def write_pictures(pictures: list[Picture], folder: Path) -> Path:
    """Write pictures and captions as `NN.png` and `NN.txt` into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures, start=1):
        picture.image.save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"{picture.caption}\n", encoding="utf-8")
    return folder


def write_subject(name: str, output: Path, *, count: int = 15, seed: int = 7) -> Path:
    """Write a subject's pictures below `output` in kohya's layout and return their folder."""
    return write_pictures(draw_subject(name, count, seed=seed), output / SUBJECTS[name].folder)


def write_class(noun: str, output: Path, *, count: int = 60, seed: int = 8) -> Path:
    """Write a class's pictures below `output` in kohya's layout and return their folder."""
    return write_pictures(draw_class(noun, count, seed=seed), output / f"1_{noun}")


def _two_colours(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(sorted(COLOURS), 2)
    return first, second


def _pattern(rng: random.Random) -> str:
    return rng.choice(("plain", "plain", "striped"))


def _place(scene: Scene, rng: random.Random, *, background: str) -> Scene:
    """Give a scene its background and leave room above it for a hat or horns."""
    low = 0.5 - max(0.5 - scene.radius * (1 + HEADROOM), 0.0) * 0.6
    return Scene(
        thing=scene.thing,
        colour=scene.colour,
        second=scene.second,
        pattern=scene.pattern,
        background=background,
        size=scene.size,
        radius=scene.radius,
        x=scene.x,
        y=max(scene.y, low, rng.uniform(low, 1 - low)),
    )


def _draw_character(subject: Subject, rng: random.Random, *, background: str, size: tuple[int, int]) -> Picture:
    placed = place_scene(rng, thing=subject.noun, colours=subject.colours, pattern=subject.pattern)
    scene = _place(placed, rng, background=background)
    caption = scene.caption.replace(scene.paint, subject.trigger)
    return Picture(render(scene, size=size, face=subject.face), caption)


def _draw_style(subject: Subject, rng: random.Random, *, background: str, size: tuple[int, int]) -> Picture:
    scene = _place(sample_scene(rng), rng, background=background)
    canvas = blank(size, BACKGROUNDS[background])
    floor(canvas, BACKGROUNDS[background])
    paint(canvas, figure_of(scene, size, outline=OUTLINE * min(size)))
    return Picture(canvas.reduce(2), f"{subject.trigger} {subject.noun}, {scene.caption}")
