"""kohya's bucket algorithm: its tables, its rounding, its edge cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.training import Buckets
from darkroom_trainer.buckets import Placement, bucket_sizes, place

SIDES = st.integers(min_value=16, max_value=6000)


@pytest.mark.parametrize(
    ("resolution", "minimum", "maximum", "count"),
    [(768, 256, 1024, 19), (768, 512, 768, 9), (768, 256, 2048, 41), (512, 256, 1024, 17)],
)
def test_tables_are_kohyas(resolution: int, minimum: int, maximum: int, count: int) -> None:
    assert len(bucket_sizes(resolution, minimum, maximum, 64)) == count


def test_table_of_sd15() -> None:
    sizes = bucket_sizes(512, 256, 1024, 64)
    assert sizes[0] == (256, 832)
    assert sizes[0:3] == ((256, 832), (256, 896), (256, 960))
    assert {(512, 512), (448, 576), (576, 448), (256, 1024), (1024, 256)} <= set(sizes)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), Placement((512, 512), (512, 512))),
        ((1000, 1000), Placement((512, 512), (512, 512))),
        ((576, 448), Placement((576, 448), (576, 448))),  # an exact size wins
        ((1920, 1080), Placement((683, 384), (640, 384))),  # wider than its bucket: the height decides
        ((1080, 1920), Placement((384, 683), (384, 640))),
        ((100, 100), Placement((512, 512), (512, 512))),
    ],
)
def test_upscaling_placements(size: tuple[int, int], expected: Placement) -> None:
    assert place(size, resolution=512, buckets=Buckets()) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 90), Placement((300, 90), (256, 64))),
        ((60, 500), Placement((60, 500), (0, 448))),
        ((512, 512), Placement((512, 512), (512, 512))),
        ((1920, 1080), Placement((683, 384), (640, 384))),
        ((4000, 3000), Placement((512, 384), (512, 384))),
        ((3000, 4000), Placement((384, 512), (384, 512))),
    ],
)
def test_placements_without_upscaling(size: tuple[int, int], expected: Placement) -> None:
    assert place(size, resolution=512, buckets=Buckets(upscale=False)) == expected


def test_without_buckets_every_picture_is_a_square() -> None:
    assert place((1000, 500), resolution=512, buckets=Buckets(enabled=False)) == Placement((1024, 512), (512, 512))
    assert Placement((1024, 512), (512, 512)).crop == (256, 0, 768, 512)


def test_minimum_and_maximum_are_rounded_to_the_step() -> None:
    assert bucket_sizes(512, 300, 1000, 64) == bucket_sizes(512, 256, 1024, 64)


@given(SIDES, SIDES)
def test_a_scaled_picture_covers_its_bucket(width: int, height: int) -> None:
    placed = place((width, height), resolution=512, buckets=Buckets())
    left, top, right, bottom = placed.crop
    assert placed.bucket[0] <= placed.scaled[0]
    assert placed.bucket[1] <= placed.scaled[1]
    assert (right - left, bottom - top) == placed.bucket
    assert min(left, top) >= 0
    assert placed.bucket[0] * placed.bucket[1] <= 512 * 512


@given(SIDES, SIDES)
def test_nothing_is_enlarged_without_upscaling(width: int, height: int) -> None:
    placed = place((width, height), resolution=512, buckets=Buckets(upscale=False))
    assert placed.bucket[0] % 64 == placed.bucket[1] % 64 == 0
    assert placed.scaled[0] <= width
    assert placed.scaled[1] <= height
