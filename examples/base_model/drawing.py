"""Paint scenes and characters with Pillow, twice as large and then reduced: the only anti-aliasing that is exact.

Everything is a function of its arguments, so a seed gives the same pixels on every machine with the same Pillow.
Coordinates inside a thing run from -1 to 1 with y downwards.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from examples.base_model.scenes import BACKGROUNDS, COLOURS, Colour, Scene

SUPERSAMPLING = 2
DARK: Colour = (24, 24, 28)
LIGHT: Colour = (250, 250, 250)

Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """The bold features of a character; a colour of None leaves the feature out."""

    eyes: int = 2
    horns: Colour | None = None
    antenna: bool = True
    hat: Colour | None = None
    mask: Colour | None = None


@dataclass(frozen=True)
class Brush:
    """A drawing context with a centre and a radius in pixels."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float

    def points(self, points: Sequence[Point]) -> list[Point]:
        """Map thing coordinates to pixels."""
        return [(self.x + u * self.radius, self.y + v * self.radius) for u, v in points]

    def polygon(self, points: Sequence[Point], fill: int | Colour) -> None:
        self.draw.polygon(self.points(points), fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, *, fill: int | Colour) -> None:
        (low, high) = self.points([(x - rx, y - ry), (x + rx, y + ry)])
        self.draw.ellipse([low, high], fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, *, fill: int | Colour) -> None:
        (low, high) = self.points([(left, top), (right, bottom)])
        self.draw.rectangle([low, high], fill=fill)


def _ring(count: int, outer: float, inner: float) -> list[Point]:
    steps = range(2 * count)
    radii = [outer if step % 2 == 0 else inner for step in steps]
    angles = [math.pi * step / count - math.pi / 2 for step in steps]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart(brush: Brush) -> None:
    points = []
    for step in range(60):
        t = 2 * math.pi * step / 60
        x = math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16
        points.append((x, y))
    brush.polygon(points, 255)


def _flower(brush: Brush) -> None:
    for step in range(5):
        angle = 2 * math.pi * step / 5 - math.pi / 2
        brush.ellipse(0.58 * math.cos(angle), 0.58 * math.sin(angle), 0.42, 0.42, fill=255)


def _robot(brush: Brush) -> None:
    brush.box(-0.62, -0.72, 0.62, 0.12, fill=255)
    brush.box(-0.42, 0.20, 0.42, 0.72, fill=255)
    brush.box(-0.80, 0.24, -0.52, 0.62, fill=255)
    brush.box(0.52, 0.24, 0.80, 0.62, fill=255)
    brush.box(-0.36, 0.72, -0.10, 1.0, fill=255)
    brush.box(0.10, 0.72, 0.36, 1.0, fill=255)


def _cat(brush: Brush) -> None:
    brush.polygon([(-0.66, -0.30), (-0.62, -1.0), (-0.08, -0.62)], 255)
    brush.polygon([(0.66, -0.30), (0.62, -1.0), (0.08, -0.62)], 255)
    brush.ellipse(0, -0.25, 0.68, 0.52, fill=255)
    brush.ellipse(0, 0.55, 0.52, 0.45, fill=255)
    brush.polygon([(0.40, 0.75), (0.85, 0.15), (1.0, 0.28), (0.55, 0.95)], 255)


def _monster(brush: Brush) -> None:
    brush.ellipse(0, -0.15, 0.80, 0.80, fill=255)
    brush.box(-0.80, -0.15, 0.80, 0.60, fill=255)
    for x in (-0.53, 0.0, 0.53):
        brush.polygon([(x - 0.27, 0.58), (x + 0.27, 0.58), (x, 1.0)], 255)


SHAPES: dict[str, Callable[[Brush], None]] = {
    "circle": lambda brush: brush.ellipse(0, 0, 0.95, 0.95, fill=255),
    "square": lambda brush: brush.box(-0.82, -0.82, 0.82, 0.82, fill=255),
    "triangle": lambda brush: brush.polygon([(0, -0.95), (0.98, 0.80), (-0.98, 0.80)], 255),
    "star": lambda brush: brush.polygon(_ring(5, 1.0, 0.42), 255),
    "heart": _heart,
    "flower": _flower,
    "robot": _robot,
    "cat": _cat,
    "monster": _monster,
}


EYES = {1: (0.0,), 2: (-0.30, 0.30), 3: (-0.46, 0.0, 0.46)}


def _eyes(brush: Brush, *, count: int, y: float, size: float) -> None:
    for x in EYES[count]:
        brush.ellipse(x, y, size, size, fill=LIGHT)
        brush.ellipse(x, y, size * 0.5, size * 0.5, fill=DARK)


def _hat(brush: Brush, colour: Colour | None, *, y: float) -> None:
    if colour is not None:
        brush.box(-0.62, y - 0.14, 0.62, y, fill=colour)
        brush.box(-0.36, y - 0.50, 0.36, y - 0.10, fill=colour)


def _horns(brush: Brush, colour: Colour | None, *, y: float) -> None:
    if colour is not None:
        for side in (-1, 1):
            brush.polygon([(side * 0.18, y), (side * 0.62, y), (side * 0.72, y - 0.46)], colour)


def _robot_face(brush: Brush, face: Face) -> None:
    _horns(brush, face.horns, y=-0.66)
    if face.antenna:
        brush.box(-0.05, -0.92, 0.05, -0.70, fill=LIGHT)
        brush.ellipse(0, -0.94, 0.12, 0.12, fill=LIGHT)
    _hat(brush, face.hat, y=-0.62)
    if face.mask is not None:
        brush.box(-0.62, -0.56, 0.62, -0.16, fill=face.mask)
    _eyes(brush, count=face.eyes, y=-0.36, size=0.32 if face.eyes == 1 else 0.20)
    brush.box(-0.30, -0.06, 0.30, 0.03, fill=DARK)


def _cat_face(brush: Brush, face: Face) -> None:
    _horns(brush, face.horns, y=-0.60)
    if face.mask is not None:
        brush.ellipse(0, -0.08, 0.44, 0.34, fill=face.mask)
    _hat(brush, face.hat, y=-0.58)
    _eyes(brush, count=face.eyes, y=-0.32, size=0.32 if face.eyes == 1 else 0.19)
    brush.polygon([(-0.10, -0.06), (0.10, -0.06), (0, 0.10)], DARK)


def _monster_face(brush: Brush, face: Face) -> None:
    _horns(brush, face.horns, y=-0.70)
    _hat(brush, face.hat, y=-0.78)
    if face.mask is not None:
        brush.ellipse(0, 0.28, 0.50, 0.26, fill=face.mask)
    _eyes(brush, count=face.eyes, y=-0.24, size=0.32 if face.eyes == 1 else 0.21)
    brush.box(-0.40, 0.22, 0.40, 0.36, fill=DARK)


def _flower_face(brush: Brush, face: Face) -> None:
    del face
    brush.ellipse(0, 0, 0.32, 0.32, fill=LIGHT)


FACES: dict[str, Callable[[Brush, Face], None]] = {
    "robot": _robot_face,
    "cat": _cat_face,
    "flower": _flower_face,
    "monster": _monster_face,
}


def _pattern(size: tuple[int, int], figure: "Figure", centre: Point, *, radius: float) -> Image.Image:
    """Fill a picture with a pattern that hangs on its thing, so that a small model can learn where the bands go.

    Stripes are level, because a tilt costs the autoencoder detail that it lacks.
    """
    image = Image.new("RGB", size, figure.colours[0])
    draw = ImageDraw.Draw(image)
    period = radius * 0.6
    half = period / 2
    for row in range(6):
        top = centre[1] - radius * 1.1 + row * period
        if figure.pattern == "striped":
            draw.rectangle([0, top, size[0], top + half], fill=figure.colours[1])
        if figure.pattern == "dotted":
            for column in range(6):
                left = centre[0] - radius * 1.1 + column * period - (half if row % 2 else 0.0)
                draw.ellipse([left, top, left + half * 1.25, top + half * 1.25], fill=figure.colours[1])
    return image


@dataclass(frozen=True)
class Figure:
    """A thing with its paint, ready to be put on a canvas; lengths are in final pixels.

    `outline` is the width of a dark line around the thing.
    """

    thing: str
    colours: tuple[Colour, Colour]
    pattern: str
    face: Face
    radius: float
    centre: Point
    outline: float = 0.0


def paint(canvas: Image.Image, figure: Figure) -> None:
    """Put a figure on a canvas that is already `SUPERSAMPLING` times as large."""
    radius = figure.radius * SUPERSAMPLING
    x, y = figure.centre[0] * SUPERSAMPLING, figure.centre[1] * SUPERSAMPLING
    mask = Image.new("L", canvas.size, 0)
    SHAPES[figure.thing](Brush(ImageDraw.Draw(mask), x, y, radius))
    if figure.outline:
        reach = 2 * round(figure.outline * SUPERSAMPLING) + 1
        canvas.paste(DARK, mask=mask.filter(ImageFilter.MaxFilter(reach)))
    canvas.paste(_pattern(canvas.size, figure, (x, y), radius=radius), mask=mask)
    if figure.thing in FACES:
        FACES[figure.thing](Brush(ImageDraw.Draw(canvas), x, y, radius), figure.face)


def floor(canvas: Image.Image, background: Colour) -> None:
    """Darken the lower third of a canvas, as if things stood in a room."""
    dark = (int(background[0] * 0.55), int(background[1] * 0.55), int(background[2] * 0.55))
    ImageDraw.Draw(canvas).rectangle([0, canvas.height * 2 // 3, canvas.width, canvas.height], fill=dark)


def blank(size: tuple[int, int], colour: Colour) -> Image.Image:
    """Return a canvas for a picture of `size` (width, height)."""
    return Image.new("RGB", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), colour)


def figure_of(scene: Scene, size: tuple[int, int], *, face: Face | None = None, outline: float = 0.0) -> Figure:
    """Return the figure of a scene's thing in a picture of `size` (width, height)."""
    return Figure(
        thing=scene.thing,
        colours=(COLOURS[scene.colour], COLOURS[scene.second]),
        pattern=scene.pattern,
        face=face or Face(),
        radius=scene.radius * min(size),
        centre=(scene.x * size[0], scene.y * size[1]),
        outline=outline,
    )


def render(scene: Scene, *, size: tuple[int, int] = (128, 128), face: Face | None = None) -> Image.Image:
    """Paint a scene; `size` is (width, height) in pixels."""
    canvas = blank(size, BACKGROUNDS[scene.background])
    paint(canvas, figure_of(scene, size, face=face))
    return canvas.reduce(SUPERSAMPLING)


def odd_face(rng: random.Random) -> Face:
    """Return a face with any mixture of features."""
    colours = [None, None, *COLOURS.values(), LIGHT]
    horns, hat = rng.choice(((rng.choice(colours), None), (None, rng.choice(colours))))
    return Face(
        eyes=rng.choice(sorted(EYES)), horns=horns, antenna=rng.random() < 0.3, hat=hat, mask=rng.choice(colours)
    )


def render_oddity(rng: random.Random, *, side: int = 128) -> Image.Image:
    """Paint what no caption describes: polygons, and characters with any mixture of features.

    The autoencoder must be able to show a subject that the rest of the model has never seen.
    """
    colours = [*COLOURS.values(), *BACKGROUNDS.values()]
    background = rng.choice(colours)
    canvas = blank((side, side), background)
    if rng.random() < 0.3:
        floor(canvas, background)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.choice((0, 0, 1, 3))):
        corners = [(rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)) for _ in range(rng.randint(3, 5))]
        draw.polygon(corners, fill=rng.choice(colours))
    figure = Figure(
        thing=rng.choice(("robot", "cat", "monster", *SHAPES)),
        colours=(rng.choice(colours), rng.choice(colours)),
        pattern=rng.choice(("plain", "striped", "striped", "dotted")),
        face=odd_face(rng),
        radius=side * rng.uniform(0.2, 0.45),
        centre=(side * rng.uniform(0.35, 0.65), side * rng.uniform(0.45, 0.55)),
        outline=rng.choice((0.0, 0.0, 3.0)),
    )
    paint(canvas, figure)
    return canvas.reduce(SUPERSAMPLING)


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return height x width x 3 bytes."""
    return np.asarray(image, dtype=np.uint8)
