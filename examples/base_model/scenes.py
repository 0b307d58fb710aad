"""What a picture shows and how its caption says it; `drawing` paints what stands here.

The vocabulary is small and every word of a caption is visible in its picture: so a small model can learn it, and a
classifier can measure whether it did.
"""

import random
from dataclasses import dataclass

Colour = tuple[int, int, int]

THINGS = ("circle", "square", "triangle", "star", "heart", "flower", "robot", "cat")
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 211, 25),
    "green": (64, 180, 60),
    "teal": (0, 140, 140),
    "blue": (40, 90, 230),
    "purple": (130, 50, 190),
    "pink": (255, 120, 190),
}
BACKGROUNDS: dict[str, Colour] = {
    "black": (16, 16, 16),
    "white": (248, 248, 248),
    "gray": (135, 135, 135),
    "navy": (20, 30, 90),
    "beige": (226, 205, 165),
    "mint": (178, 238, 208),
    "brown": (104, 66, 36),
}
HELD_OUT = frozenset(
    {
        ("circle", "green"),
        ("square", "pink"),
        ("triangle", "blue"),
        ("star", "teal"),
        ("heart", "orange"),
        ("flower", "yellow"),
        ("robot", "purple"),
        ("cat", "red"),
    }
)
"""Things and colours that are never shown together: a model that paints them has understood both words."""
PATTERNS = ("plain", "striped", "dotted")
SIZES = {"small": (0.20, 0.25), "medium": (0.30, 0.35), "large": (0.39, 0.44)}


@dataclass(frozen=True)
class Scene:
    """One thing on a background. `x`, `y` and `radius` are fractions of the picture's width, height and short side."""

    thing: str
    colour: str
    second: str
    pattern: str
    background: str
    size: str
    radius: float
    x: float
    y: float

    @property
    def place(self) -> str:
        """Name the side on which the thing stands, or nothing when it is near the middle."""
        if self.x < 0.42:
            return " on the left"
        return " on the right" if self.x > 0.58 else ""

    @property
    def paint(self) -> str:
        """Name the thing's colour, or its two and their pattern."""
        return self.colour if self.pattern == "plain" else f"{self.colour} and {self.second} {self.pattern}"

    @property
    def caption(self) -> str:
        """Say what the picture shows, such as "a small red star on a black background on the left"."""
        size = "" if self.size == "medium" else f"{self.size} "
        return f"a {size}{self.paint} {self.thing} on a {self.background} background{self.place}"


def sample_scene(rng: random.Random) -> Scene:
    """Draw a scene at random, none of the combinations held out; the thing never leaves the picture."""
    thing = rng.choice(THINGS)
    allowed = [colour for colour in sorted(COLOURS) if (thing, colour) not in HELD_OUT]
    colour, second = rng.sample(allowed, 2)
    return place_scene(rng, thing=thing, colours=(colour, second), pattern=rng.choices(PATTERNS, weights=(3, 1, 1))[0])


def sample_held_out(rng: random.Random) -> Scene:
    """Draw a plain scene of a combination that is held out."""
    thing, colour = rng.choice(sorted(HELD_OUT))
    return place_scene(rng, thing=thing, colours=(colour, colour), pattern="plain")


def place_scene(rng: random.Random, *, thing: str, colours: tuple[str, str], pattern: str) -> Scene:
    """Choose size, place and background for a thing."""
    size = rng.choices(("small", "medium", "large"), weights=(1, 2, 2))[0]
    radius = rng.uniform(*SIZES[size])
    slack = 0.5 - radius
    x = 0.5 + rng.uniform(-slack, slack)
    y = 0.5 + rng.uniform(-slack, slack) * 0.6
    background = rng.choice(sorted(BACKGROUNDS))
    return Scene(thing, colours[0], colours[1], pattern, background, size, radius, x, y)
