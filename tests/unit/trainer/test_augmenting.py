"""Changes of pictures: what is drawn, what it does to pixels, and that whatever returns is known ahead."""

from __future__ import annotations

import colorsys
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.augmentation import Augmentation
from darkroom_api.training import Training
from darkroom_trainer.augmenting import AS_IT_IS, Changes, changes_known_ahead, draw_changes
from darkroom_trainer.batches import Course, arrange
from darkroom_trainer.buckets import Placement
from darkroom_trainer.dataset import Picture
from darkroom_trainer.items import Item
from darkroom_trainer.pixels import shift_hue, to_pixels
from darkroom_trainer.randomness import shuffler
from tests.builders.pictures import draw

ALL: dict[str, Any] = {"flip": True, "color": True, "randomCrop": True}
SPECS = st.builds(Augmentation, flip=st.booleans(), color=st.booleans(), random_crop=st.booleans())
PLACEMENTS = st.builds(
    lambda width, height, right, below: Placement((width + right, height + below), (width, height)),
    *[st.integers(1, 500)] * 2,
    *[st.integers(0, 200)] * 2,
)


def picture(path: Path, index: int = 1, size: tuple[int, int] = (96, 64)) -> Picture:
    return Picture(path, f"2_x/{path.name}", "2_x", size, "a", 2, f"{index:064x}")


def course(**training: Any) -> Course:
    pictures = [picture(Path(f"{index}.png"), index, size) for index, size in enumerate([(512, 512), (800, 500)] * 3)]
    return arrange(pictures, Training.model_validate({"epochs": 2, **training}))


@given(SPECS, PLACEMENTS, st.integers(0, 2**32))
def test_only_what_is_asked_for_is_changed_and_within_bounds(
    spec: Augmentation, placement: Placement, seed: int
) -> None:
    changes = draw_changes(spec, placement, random.Random(seed))
    assert spec.flip or not changes.mirrored
    assert (changes.corner is not None) == (spec.random_crop and placement.is_cropped)
    left, top, right, bottom = placement.crop(changes.corner)
    assert 0 <= left < right <= placement.scaled[0]
    assert 0 <= top < bottom <= placement.scaled[1]
    assert (right - left, bottom - top) == placement.bucket
    assert spec.color or (changes.hue, changes.gamma) == (0, 1)
    assert -16 <= changes.hue <= 16
    assert 0.95 <= changes.gamma <= 1.05
    assert changes.hue == 0 or changes.gamma == 1


@given(SPECS, PLACEMENTS, st.integers(0, 2**32))
def test_what_may_return_is_known_ahead_and_nothing_else_is(
    spec: Augmentation, placement: Placement, seed: int
) -> None:
    known = changes_known_ahead(spec, placement)
    changes = draw_changes(spec, placement, random.Random(seed))
    assert changes.are_known_ahead == (changes in known)
    assert all(it.are_known_ahead for it in known)


def test_every_change_has_its_share_and_every_place_its_turn() -> None:
    placement = Placement((66, 65), (64, 64))
    drawn = [draw_changes(Augmentation.model_validate(ALL), placement, random.Random(seed)) for seed in range(4000)]
    assert sum(it.mirrored for it in drawn) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(it.hue != 0 for it in drawn) / 4000 == pytest.approx(0.165, abs=0.03)
    assert sum(it.gamma != 1 for it in drawn) / 4000 == pytest.approx(0.165, abs=0.03)
    assert {it.corner for it in drawn} == {(left, top) for left in range(3) for top in range(2)}


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=8), st.floats(-16, 16))
def test_the_hue_is_turned_as_colorsys_turns_it(colors: list[tuple[int, int, int]], degrees: float) -> None:
    pixels = torch.tensor(colors, dtype=torch.float64).T.unsqueeze(1) / 255
    expected = []
    for red, green, blue in colors:
        hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        expected.append(colorsys.hsv_to_rgb((hue + degrees / 360) % 1, saturation, value))
    turned = shift_hue(pixels, degrees)
    torch.testing.assert_close(turned, torch.tensor(expected, dtype=torch.float64).T.unsqueeze(1), atol=1e-6, rtol=0)


def test_pixels_are_cropped_coloured_and_then_mirrored(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    draw((96, 64), seed=1).save(path)
    item = Item(picture(path), Placement((96, 64), (64, 64)))
    whole = to_pixels(Item(picture(path), Placement((96, 64), (96, 64))))

    def shown(**changes: Any) -> torch.Tensor:
        return to_pixels(item.changed(Changes(**changes)))

    assert torch.equal(shown(), whole[:, :, 16:80])
    assert torch.equal(shown(corner=(32, 0)), whole[:, :, 32:])
    assert torch.equal(shown(corner=(0, 0), mirrored=True), whole[:, :, :64].flip(-1))
    darker = ((whole[:, :, 16:80] + 1) / 2).pow(1.05) * 2 - 1
    torch.testing.assert_close(shown(gamma=1.05), darker, atol=1e-5, rtol=0)
    assert torch.equal(shown(gamma=1.05, mirrored=True), shown(gamma=1.05).flip(-1))
    turned = shift_hue((whole[:, :, 16:80] + 1) / 2, 16) * 2 - 1
    torch.testing.assert_close(shown(hue=16.0), turned, atol=1e-5, rtol=0)
    assert not torch.allclose(turned, shown(), atol=0.01)


def test_sdxl_is_told_what_is_cut_off_of_the_picture_that_it_sees() -> None:
    item = Item(picture(Path("a")), Placement((100, 70), (64, 64)), Changes(corner=(30, 6)))
    assert item.corner == (30, 6)
    assert item.changed(Changes(corner=(30, 6), mirrored=True)).corner == (6, 6)
    assert item.changed(AS_IT_IS).corner == (18, 3)


def test_each_picture_of_a_step_has_changes_that_follow_from_its_number_alone() -> None:
    plain, run = (
        course(batchSize=2, gradientAccumulation=2),
        course(batchSize=2, gradientAccumulation=2, augmentation=ALL),
    )
    every = set[Changes]()
    for step in reversed(range(run.total_steps)):
        window, shown = plain.window(step), run.window(step)
        assert [[it.changed(AS_IT_IS) for it in batch] for batch in shown] == window
        for number, item in enumerate(it for batch in shown for it in batch):
            rng = shuffler(42, "augmentation", step, number)
            assert item.changes == draw_changes(Augmentation.model_validate(ALL), item.placement, rng)
            every.add(item.changes)
    assert len(every) > 10


def test_the_vae_is_wanted_in_steps_only_where_something_is_shown_once() -> None:
    square = {"buckets": {"enabled": False}}
    assert not course().encodes_in_steps
    assert not course(augmentation={"flip": True}).encodes_in_steps
    assert course(augmentation={"color": True}).encodes_in_steps
    assert course(augmentation={"randomCrop": True}, **square).encodes_in_steps
    uncropped = arrange([picture(Path("a"), size=(512, 512))], Training.model_validate({"augmentation": ALL}))
    assert uncropped.items[0].placement.is_cropped is False
    assert not arrange(
        uncropped.pictures, Training.model_validate({"augmentation": {"randomCrop": True}})
    ).encodes_in_steps


def test_known_ahead_is_each_picture_in_each_direction_and_the_validations_as_they_are() -> None:
    run = course(augmentation={"flip": True, "color": True})
    assert [it.changes for it in run.known_ahead] == [AS_IT_IS, Changes(mirrored=True)] * 6
    square = course(augmentation=ALL, buckets={"enabled": False})
    assert {it.picture.size for it in square.known_ahead} == {(512, 512)}


def test_other_augmentation_is_another_course() -> None:
    found = [course(augmentation=it).fingerprint for it in ({}, {"flip": True}, {"color": True}, ALL)]
    assert len(set(found)) == 4
    assert course().fingerprint == found[0]
