"""Draw what the base model has never seen, as folders that trainers take as they stand: characters and a style.

They are bold on purpose: a person must see at a glance whether a training has learned them. Captions say everything
but what is new, so the trigger is the only word left to learn it by. Ordinary pictures of the class are for
regularisation; near misses, drawn in the same way, are for whoever must tell the subject from its like.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from PIL import Image

from examples.base_model.drawing import EYES, LIGHT, SUPERSAMPLING, Face, blank, figure_of, floor, paint, render
from examples.base_model.scenes import BACKGROUNDS, COLOURS, THINGS, Scene, allowed_colours, place_scene, sample_scene

REPEATS = 10
Size = tuple[int, int]
SQUARE: Size = (128, 128)
# (width, height): most are square, some are not, so that aspect buckets are put to use
PICTURE_SIZES: tuple[Size, ...] = (SQUARE, (160, 160), SQUARE, (192, 128), SQUARE, (192, 192), (128, 192))
HEADROOM = 0.20  # of the radius: what hats and horns need above a thing
OUTLINE = 0.03  # of the short side: the dark line of the style


@dataclass(frozen=True)
class Picture:
    """A training picture with its caption."""

    image: Image.Image
    caption: str


class Subject(Protocol):
    """What can be taught: words that call it, and how it looks."""

    @property
    def trigger(self) -> str: ...

    @property
    def noun(self) -> str: ...

    def draw(self, rng: random.Random, *, background: str, size: Size) -> Picture:
        """Draw it somewhere on a background; `size` is (width, height) in pixels."""

    def near_miss(self, rng: random.Random) -> Self:
        """Return what is nearly it: all but its colours, its face or one feature."""

    def prompts(self) -> list[str]:
        """Return prompts that call it, one for each background."""


@dataclass(frozen=True)
class Character:
    """A thing with colours and a face that the base model does not know together."""

    trigger: str
    noun: str
    colours: tuple[str, str]
    pattern: str
    face: Face

    def draw(self, rng: random.Random, *, background: str, size: Size) -> Picture:
        placed = place_scene(rng, thing=self.noun, colours=self.colours, pattern=self.pattern)
        scene = _with_headroom(placed, rng, background=background)
        caption = scene.caption.replace(scene.paint, self.trigger)
        return Picture(render(scene, size=size, face=self.face), caption)

    def near_miss(self, rng: random.Random) -> Self:
        first, second = rng.sample(sorted(COLOURS.keys() - set(self.colours)), 2)
        others = (first, first if self.pattern == "plain" else second)
        faces = [
            Face(),
            replace(self.face, eyes=rng.choice(sorted(EYES.keys() - {self.face.eyes}))),
            replace(self.face, horns=None, hat=None),
            replace(self.face, horns=None, hat=COLOURS[first]) if self.face.horns else replace(self.face, hat=None),
        ]
        if rng.random() < 0.4:
            return replace(self, colours=others)
        return replace(self, face=rng.choice(faces))

    def prompts(self) -> list[str]:
        return [f"a large {self.trigger} {self.noun} on a {name} background" for name in sorted(BACKGROUNDS)]


@dataclass(frozen=True)
class Style:
    """A way to draw any thing: a dark outline, and a floor."""

    trigger: str
    noun: str
    outline: float = OUTLINE
    has_floor: bool = True

    def draw(self, rng: random.Random, *, background: str, size: Size) -> Picture:
        scene = _with_headroom(sample_scene(rng), rng, background=background)
        canvas = blank(size, BACKGROUNDS[background])
        if self.has_floor:
            floor(canvas, BACKGROUNDS[background])
        paint(canvas, figure_of(scene, size, outline=self.outline * min(size)))
        return Picture(canvas.reduce(SUPERSAMPLING), f"{self.trigger} {self.noun}, {scene.caption}")

    def near_miss(self, rng: random.Random) -> Self:
        return replace(self, outline=0.0) if rng.random() < 0.5 else replace(self, has_floor=False)

    def prompts(self) -> list[str]:
        return [
            f"{self.trigger} {self.noun}, a large {colour} {thing} on a {background} background"
            for background, colour, thing in zip(sorted(BACKGROUNDS), COLOURS, THINGS, strict=False)
        ]


# Triggers are one token of CLIP's vocabulary and mean nothing.
SUBJECTS: dict[str, Subject] = {
    "robot": Character("sks", "robot", ("teal", "orange"), "striped", Face(1, horns=COLOURS["yellow"], antenna=False)),
    "cat": Character("ohwx", "cat", ("yellow", "yellow"), "plain", Face(2, hat=COLOURS["blue"], mask=LIGHT)),
    "monster": Character("vox", "monster", ("green", "green"), "plain", Face(3, horns=COLOURS["purple"])),
    "style": Style("lun", "style"),
}


def find_subject(name: str) -> Subject:
    """Return a subject by its name.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in SUBJECTS:
        raise ValueError(f"subject: got {name!r}; allowed: {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


def draw_subject(name: str, count: int, *, seed: int = 7) -> list[Picture]:
    """Draw a subject on varied backgrounds, in varied sizes and places.

    Raises:
        ValueError: There is no subject of that name.
    """
    return draw_pictures(find_subject(name), count, seed=seed, sizes=PICTURE_SIZES)


def draw_pictures(subject: Subject, count: int, *, seed: int, sizes: Sequence[Size] = (SQUARE,)) -> list[Picture]:
    """Draw anything that can be taught; sizes move on by one each time the backgrounds begin anew."""
    rng, backgrounds = random.Random(seed), sorted(BACKGROUNDS)
    rng.shuffle(backgrounds)
    pictures = []
    for index in range(count):
        turn, place = divmod(index, len(backgrounds))
        size = sizes[(place + turn) % len(sizes)]
        pictures.append(subject.draw(rng, background=backgrounds[place], size=size))
    return pictures


def draw_class(noun: str, count: int, *, seed: int = 8) -> list[Picture]:
    """Draw ordinary pictures of a class, for regularisation: what the base model knows of it, nothing held out.

    Raises:
        ValueError: The base model knows no such thing.
    """
    if noun not in THINGS:
        raise ValueError(f"class: got {noun!r}; allowed: {', '.join(THINGS)}; the base model knows no other")
    rng = random.Random(seed)
    pictures = []
    for _ in range(count):
        first, second = rng.sample(allowed_colours(noun), 2)
        pattern = rng.choice(("plain", "plain", "striped"))  # dots come out blurred
        scene = place_scene(rng, thing=noun, colours=(first, second), pattern=pattern)
        pictures.append(Picture(render(scene), scene.caption))
    return pictures


def write_pictures(pictures: list[Picture], folder: Path) -> Path:
    """Write pictures and captions as `NN.png` and `NN.txt` into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures, start=1):
        picture.image.save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"{picture.caption}\n", encoding="utf-8")
    return folder


def write_subject(name: str, output: Path, *, count: int = 15, seed: int = 7) -> Path:
    """Write a subject's pictures below `output` in kohya's layout and return their folder.

    Raises:
        ValueError: There is no subject of that name.
    """
    subject = find_subject(name)
    folder = output / f"{REPEATS}_{subject.trigger} {subject.noun}"
    return write_pictures(draw_subject(name, count, seed=seed), folder)


def write_class(noun: str, output: Path, *, count: int = 60, seed: int = 8) -> Path:
    """Write a class's pictures below `output` in kohya's layout and return their folder.

    Raises:
        ValueError: The base model knows no such thing.
    """
    return write_pictures(draw_class(noun, count, seed=seed), output / f"1_{noun}")


def _with_headroom(scene: Scene, rng: random.Random, *, background: str) -> Scene:
    """Give a scene its background and leave room above it for a hat or horns."""
    slack = (0.5 - scene.radius) * 0.6
    low = max(0.5 - slack, scene.radius * (1 + HEADROOM))
    return replace(scene, background=background, y=rng.uniform(low, max(low, 0.5 + slack)))
