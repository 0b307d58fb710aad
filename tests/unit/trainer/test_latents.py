"""What is kept of pictures: the same numbers from memory and disk, and no more memory than allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from darkroom_api.training import Training
from darkroom_trainer.augmenting import Changes
from darkroom_trainer.batches import Course, arrange
from darkroom_trainer.buckets import Placement
from darkroom_trainer.dataset import scan
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.host_memory import host_memory_bytes
from darkroom_trainer.items import Item
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.pixels import to_pixels
from tests.builders.pictures import write_pictures

ENCODED_BYTES = 2 * 4 * 8 * 8 * 4
"""Of a picture of 64 x 64: mean and deviation in fp32."""


@pytest.fixture
def course(tmp_path: Path) -> Course:
    pictures = scan(write_pictures(tmp_path / "pictures", sizes=[(64, 64)] * 4))
    return arrange(pictures, Training.model_validate({"resolution": 64, "buckets": {"enabled": False}}))


@pytest.fixture
def vae(load_model: Callable[[], StableDiffusion]) -> AutoencoderKL:
    return load_model().vae


@pytest.fixture
def filled(course: Course, tmp_path: Path, vae: AutoencoderKL) -> Path:
    LatentCache(tmp_path / "latents", vae).fill(course.items, on_item=lambda _: None)
    return tmp_path / "latents"


def draws(cache: LatentCache, course: Course) -> torch.Tensor:
    return cache.draw(course.items, torch.Generator().manual_seed(1))


def test_memory_and_disk_give_the_same_bits(course: Course, filled: Path, vae: AutoencoderKL) -> None:
    none, one, all_of_them = (LatentCache(filled, vae, memory_bytes=count * ENCODED_BYTES) for count in (0, 1, 4))
    expected = draws(none, course)
    for cache in (none, one, all_of_them):
        assert torch.equal(draws(cache, course), expected)
        assert torch.equal(draws(cache, course), expected)


@pytest.mark.parametrize(("memory_bytes", "held"), [(0, 0), (2 * ENCODED_BYTES - 1, 1), (3 * ENCODED_BYTES, 3)])
def test_what_fits_is_held_and_the_rest_is_looked_up_again(
    course: Course, filled: Path, vae: AutoencoderKL, memory_bytes: int, held: int
) -> None:
    cache = LatentCache(filled, vae, memory_bytes=memory_bytes)
    expected = cache.means(course.items)
    for path in filled.iterdir():
        path.unlink()
    assert torch.equal(cache.means(course.items), expected)
    assert len(list(filled.iterdir())) == 4 - held


def test_a_picture_that_was_encoded_is_not_encoded_again(course: Course, filled: Path, vae: AutoencoderKL) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in filled.iterdir()}
    LatentCache(filled, vae).fill(course.items, on_item=lambda _: None)
    assert {path.name: path.stat().st_mtime_ns for path in filled.iterdir()} == before
    assert len(before) == len(course.items)


@torch.no_grad()
def test_a_mirrored_picture_is_encoded_as_such(course: Course, tmp_path: Path, vae: AutoencoderKL) -> None:
    cache, item = LatentCache(tmp_path / "latents", vae), course.items[0]
    mirrored = item.changed(Changes(mirrored=True))
    cache.fill([item, mirrored], on_item=lambda _: None)
    plain, other = cache.means([item]), cache.means([mirrored])
    assert torch.equal(other, vae.encode(to_pixels(item).flip(-1).unsqueeze(0)).latent_dist.mean)
    assert not torch.allclose(other, plain.flip(-1), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("changes", [Changes(corner=(0, 0)), Changes(hue=16.0), Changes(mirrored=True, gamma=1.05)])
def test_what_is_shown_once_is_encoded_then_and_not_kept(
    course: Course, tmp_path: Path, vae: AutoencoderKL, changes: Changes
) -> None:
    item = Item(course.items[0].picture, Placement((96, 96), (64, 64)), changes)
    cache = LatentCache(tmp_path / "latents", vae)
    found = cache.draw([item], torch.Generator().manual_seed(1))
    expected = vae.encode(to_pixels(item).unsqueeze(0)).latent_dist
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, expected.mean + expected.std * noise)
    assert list((tmp_path / "latents").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "limit", "found"),
    [
        ("memory.max", "1048576\n", 2**20),
        ("memory/memory.limit_in_bytes", "2097152\n", 2**21),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_the_pods_limit_counts_before_the_machines_memory(
    tmp_path: Path, name: str, limit: str, found: int | None
) -> None:
    machine = host_memory_bytes(tmp_path / "no cgroups")
    assert machine > 2**27
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(limit)
    assert host_memory_bytes(tmp_path) == (found or machine)
