"""Reads a picture's thing, colour and background; it has never seen a picture that a model painted."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its name in all of torch's literature
from PIL import Image

from benchmarks.instruments.networks import Network, augment, cached, fit, shrink, to_tensor
from examples.base_model.drawing import render
from examples.base_model.scenes import BACKGROUNDS, COLOURS, PATTERNS, THINGS, Scene, place_scene

ASPECTS = ("thing", "colour", "background")
COLOUR_NAMES = tuple(sorted(COLOURS))
BACKGROUND_NAMES = tuple(sorted(BACKGROUNDS))
SIZES = [len(THINGS), len(COLOUR_NAMES), len(BACKGROUND_NAMES)]


@dataclass(frozen=True)
class Reading:
    """What a picture shows, in the words of captions; colours from the clearest, a patterned thing has two."""

    thing: str
    colours: tuple[str, ...]
    background: str

    def agrees(self, wanted: Reading, aspect: str) -> bool:
        """Tell whether one aspect is what was wanted: of a plain thing its colour, of a patterned one both."""
        if aspect == "colour":
            return set(self.colours[: len(wanted.colours)]) == set(wanted.colours)
        return bool(getattr(self, aspect) == getattr(wanted, aspect))


def any_scene(rng: random.Random) -> Scene:
    """Draw a scene of any combination, those held out from the base model too: the judge must know them."""
    first, second = rng.sample(sorted(COLOURS), 2)
    pattern = rng.choices(PATTERNS, weights=(3, 1, 1))[0]
    return place_scene(rng, thing=rng.choice(THINGS), colours=(first, second), pattern=pattern)


def draw_scenes(count: int, *, seed: int) -> tuple[torch.Tensor, list[Reading]]:
    """Draw scenes; return pictures (B, C, H, W) in [-1, 1] and what they show."""
    rng = random.Random(seed)
    drawn = [any_scene(rng) for _ in range(count)]
    return to_tensor([render(scene) for scene in drawn]), [expected(scene) for scene in drawn]


def expected(scene: Scene) -> Reading:
    """Return what a picture of a scene should be read as."""
    colours = (scene.colour,) if scene.pattern == "plain" else (scene.colour, scene.second)
    return Reading(scene.thing, colours, scene.background)


class Classifier:
    """The network and the words that its outputs mean."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @torch.no_grad()
    def read(self, images_BCHW: torch.Tensor) -> list[Reading]:  # noqa: N803
        """Read pictures in [-1, 1]."""
        outputs = torch.cat([self.network(part) for part in torch.split(images_BCHW, 64)])
        things, colours, backgrounds = torch.split(outputs, SIZES, dim=1)
        answers = zip(
            things.argmax(dim=1).tolist(),
            colours.topk(2, dim=1).indices.tolist(),
            backgrounds.argmax(dim=1).tolist(),
            strict=True,
        )
        return [
            Reading(THINGS[thing], tuple(COLOUR_NAMES[it] for it in two), BACKGROUND_NAMES[background])
            for thing, two, background in answers
        ]

    def read_images(self, images: list[Image.Image]) -> list[Reading]:
        """Read pictures of any size."""
        return self.read(to_tensor(images))

    @torch.no_grad()
    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """Return features (B, D) by which pictures can be compared."""
        return self.network.features(images_BCHW)


def agreement(read: list[Reading], wanted: list[Reading]) -> dict[str, float]:
    """Return for each aspect the share of pictures that show what was wanted."""
    pairs = list(zip(read, wanted, strict=True))
    return {aspect: sum(one.agrees(other, aspect) for one, other in pairs) / len(pairs) for aspect in ASPECTS}


def accuracy(classifier: Classifier, *, count: int = 500, seed: int = 77) -> dict[str, float]:
    """Return each aspect's accuracy on augmented drawings that it was not trained on."""
    images, wanted = draw_scenes(count, seed=seed)
    return agreement(classifier.read(augment(shrink(images), torch.Generator().manual_seed(seed))), wanted)


def load_classifier(*, pictures: int = 4000, steps: int = 1200) -> Classifier:
    """Return the classifier, trained on fresh drawings where the cache has none."""

    def train(network: Network) -> None:
        images, wanted = draw_scenes(pictures, seed=11)
        things = torch.tensor([THINGS.index(it.thing) for it in wanted])
        colours = torch.tensor([[float(name in it.colours) for name in COLOUR_NAMES] for it in wanted])
        backgrounds = torch.tensor([BACKGROUND_NAMES.index(it.background) for it in wanted])

        def loss(outputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            thing, colour, background = torch.split(outputs, SIZES, dim=1)
            told_apart = F.cross_entropy(thing, things[index]) + F.cross_entropy(background, backgrounds[index])
            return told_apart + 4 * F.binary_cross_entropy_with_logits(colour, colours[index])

        fit(network, images, loss, steps=steps)

    key = f"{pictures}/{steps}"
    return Classifier(cached("classifier", sum(SIZES), made_by=sys.modules[__name__], key=key, train=train))
