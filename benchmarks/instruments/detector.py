"""Says whether a subject is in a picture; the hard negatives differ from it in its colours, its face or one feature.

Half of what it is trained on went through the base model's autoencoder, so that blur is no reason for a yes or a no.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its name in all of torch's literature
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.instruments import classifier
from benchmarks.instruments.classifier import any_scene
from benchmarks.instruments.networks import Network, cached, fit, to_tensor
from examples.base_model.drawing import render
from examples.base_model.subjects import SUBJECTS, draw_pictures


def draw_near_misses(name: str, count: int, *, seed: int) -> list[Image.Image]:
    """Draw what is nearly a subject, in the places and on the backgrounds that the subject has with the same seed."""
    rng, subject = random.Random(seed), SUBJECTS[name]
    return [draw_pictures(subject.near_miss(rng), 1, seed=rng.randrange(2**32))[0].image for _ in range(count)]


def draw_examples(name: str, count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw as many pictures with a subject as without; return them (B, C, H, W) in [-1, 1] and 1 or 0 for each.

    Half of those without it are near misses, drawn in the same way, so that only what is new tells them apart.
    """
    rng, half = random.Random(seed), count // 2
    with_it = [picture.image for picture in draw_pictures(SUBJECTS[name], half, seed=seed)]
    nearly = draw_near_misses(name, half // 2, seed=seed + 1)
    anything = [render(any_scene(rng)) for _ in range(count - half - len(nearly))]
    labels = torch.tensor([1.0] * half + [0.0] * (count - half))
    return to_tensor(with_it + nearly + anything), labels


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Encode and decode pictures in [-1, 1]."""
    return torch.cat(
        [vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in torch.split(images_BCHW, 16)]
    )


@dataclass(frozen=True)
class Detector:
    """The network of one subject."""

    network: Network

    @torch.no_grad()
    def score(self, images_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """Return for each picture in [-1, 1] how sure it is, from 0 to 1."""
        return torch.cat([self.network(part)[:, 0].sigmoid() for part in torch.split(images_BCHW, 64)])


def accuracy(detector: Detector, name: str, transform: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
    """Return mean scores on unseen drawings after `transform`: of the subject, of near misses, of anything else."""
    images, labels = draw_examples(name, 160, seed=78)
    scores = detector.score(transform(images))
    without = scores[labels == 0]
    nearly, anything = without[: len(without) // 2], without[len(without) // 2 :]
    means = {"with it": scores[labels == 1], "near misses": nearly, "anything else": anything}
    return {name: float(it.mean()) for name, it in means.items()}


def _digest(vae: AutoencoderKL) -> str:
    weights = b"".join(tensor.numpy().tobytes() for tensor in vae.state_dict().values())
    return hashlib.sha256(weights).hexdigest()


def load_detector(name: str, vae: AutoencoderKL, *, pictures: int = 2000, steps: int = 700) -> Detector:
    """Return a subject's detector, trained where the cache has none.

    Args:
        name: Of the subject, see `examples.base_model.subjects`.
        vae: Of the base model; another one needs another detector.
        pictures: Drawn to train on; half of them show the subject.
        steps: Of training.
    """

    def train(network: Network) -> None:
        images, labels = draw_examples(name, pictures, seed=12)
        images[::2] = round_trip(vae, images[::2])

        def loss(outputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return F.binary_cross_entropy_with_logits(outputs[:, 0], labels[index])

        fit(network, images, loss, steps=steps)

    made_of = f"{name}/{_digest(vae)}/{pictures}/{steps}"
    return Detector(
        cached(f"detector-{name}", 1, made_by=(sys.modules[__name__], classifier), key=made_of, train=train)
    )
