"""Says whether a subject is in a picture; the hard negatives share all but one of its features.

It is trained on round trips through the base model's autoencoder, so that blur is no reason for a yes or a no.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - its name in all of torch's literature
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.instruments.classifier import any_scene
from benchmarks.instruments.networks import Network, cached, fit, to_tensor
from examples.base_model.drawing import odd_face, render, render_oddity
from examples.base_model.scenes import COLOURS, place_scene
from examples.base_model.subjects import SUBJECTS, Subject, draw_subject


def near_misses(subject: Subject, count: int, rng: random.Random) -> list[Image.Image]:
    """Draw what is nearly the subject: its colours without its face, its face in other colours, its class."""
    assert subject.face is not None
    images = []
    for index in range(count):
        first, second = rng.sample(sorted(COLOURS.keys() - set(subject.colours)), 2)
        colours, face = ((subject.colours, None), ((first, second), subject.face), ((first, second), None))[index % 3]
        pattern = subject.pattern if index % 3 == 0 else rng.choice(("plain", "striped"))
        scene = place_scene(rng, thing=subject.noun, colours=colours, pattern=pattern)
        images.append(render(scene, face=face))
    return images


def other_faces(subject: Subject, count: int, rng: random.Random) -> list[Image.Image]:
    """Draw the subject's colours with features of somebody else."""
    assert subject.face is not None
    images: list[Image.Image] = []
    while len(images) < count:
        face = odd_face(rng)
        if (face.eyes, bool(face.horns), bool(face.hat)) == (
            subject.face.eyes,
            bool(subject.face.horns),
            bool(subject.face.hat),
        ):
            continue
        scene = place_scene(rng, thing=subject.noun, colours=subject.colours, pattern=subject.pattern)
        images.append(render(scene, face=replace(face, antenna=rng.random() < 0.5)))
    return images


def draw_examples(name: str, count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw as many pictures with a subject as without; return them (B, C, H, W) in [-1, 1] and 1 or 0 for each."""
    rng, subject = random.Random(seed), SUBJECTS[name]
    with_it = [picture.image for picture in draw_subject(name, count // 2, seed=seed)]
    without = count - len(with_it)
    images = [render(any_scene(rng)) for _ in range(without // 4 if subject.face else without)]
    if subject.face:
        images += [render_oddity(rng) for _ in range(without // 4)]
        images += near_misses(subject, without // 4, rng)
        images += other_faces(subject, without - len(images), rng)
    labels = torch.tensor([1.0] * len(with_it) + [0.0] * without)
    return to_tensor(with_it + images), labels


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Encode and decode pictures in [-1, 1]."""
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in torch.split(images_BCHW, 16)])


@dataclass(frozen=True)
class Detector:
    """The network of one subject."""

    network: Network

    @torch.no_grad()
    def score(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """Return for each picture in [-1, 1] how sure it is, from 0 to 1."""
        return torch.cat([self.network(part)[:, 0].sigmoid() for part in torch.split(images_BCHW, 64)])

    def score_images(self, images: list[Image.Image]) -> float:
        """Return the mean over pictures of any size."""
        return float(self.score(to_tensor(images)).mean())


def accuracy(detector: Detector, name: str, transform: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
    """Return mean scores on unseen drawings after `transform`: with the subject and without it."""
    images, labels = draw_examples(name, 240, seed=78)
    scores = detector.score(transform(images))
    return {"with": float(scores[labels == 1].mean()), "without": float(scores[labels == 0].mean())}


def load_detector(name: str, vae: AutoencoderKL, *, key: str, pictures: int = 2000, steps: int = 700) -> Detector:
    """Return a subject's detector, trained where the cache has none.

    Args:
        name: Of the subject, see `examples.base_model.subjects`.
        vae: Of the base model.
        key: Tells one base model from another, such as its hash.
        pictures: Drawn to train on; half of them show the subject.
        steps: Of training.
    """

    def train(network: Network) -> None:
        images, labels = draw_examples(name, pictures, seed=12)
        images[::2] = round_trip(vae, images[::2])

        def loss(outputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return F.binary_cross_entropy_with_logits(outputs[:, 0], labels[index])

        fit(network, images, loss, steps=steps)

    made_of = f"{name}/{key}/{pictures}/{steps}"
    return Detector(cached(f"detector-{name}", 1, made_by=sys.modules[__name__], key=made_of, train=train))
