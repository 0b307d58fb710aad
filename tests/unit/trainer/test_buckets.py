"""kohya's bucket algorithm: its tables, its rounding, its edge cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from darkroom_api.training import Buckets
from darkroom_trainer.buckets import Placement, bucket_sizes, place

SIDES = st.integers(min_value=16, max_value=6000)


def kohya_resolutions(width: int, height: int, *, smallest: int, largest: int, divisible: int) -> list[Any]:
    """`make_bucket_resolutions` of kohya-ss/sd-scripts, library/model_util.py, statement by statement."""
    max_area = width * height
    resolutions = set()
    side = int(math.sqrt(max_area) // divisible) * divisible
    resolutions.add((side, side))
    side = smallest
    while side <= largest:
        other = min(largest, int((max_area // side) // divisible) * divisible)
        if other >= smallest:
            resolutions.add((side, other))
            resolutions.add((other, side))
        side += divisible
    return sorted(resolutions)


class KohyaBucketManager:
    """`BucketManager` of kohya-ss/sd-scripts, library/train_util.py, statement by statement."""

    def __init__(self, no_upscale: bool, reso: int, min_size: int, max_size: int, reso_steps: int) -> None:
        min_size = min_size - min_size % reso_steps
        max_size = max_size + (-max_size) % reso_steps
        self.no_upscale, self.reso_steps, self.max_area = no_upscale, reso_steps, reso * reso
        self.resos = kohya_resolutions(reso, reso, smallest=min_size, largest=max_size, divisible=reso_steps)
        self.aspect_ratios = np.array([w / h for w, h in self.resos])

    def round_to_steps(self, x: float) -> int:
        x = int(x + 0.5)
        return x - x % self.reso_steps

    def select_bucket(self, image_width: int, image_height: int) -> Any:
        aspect_ratio = image_width / image_height
        if not self.no_upscale:
            reso = (image_width, image_height)
            if reso not in set(self.resos):
                reso = self.resos[np.abs(self.aspect_ratios - aspect_ratio).argmin()]
            scale = reso[1] / image_height if aspect_ratio > reso[0] / reso[1] else reso[0] / image_width
            return reso, (int(image_width * scale + 0.5), int(image_height * scale + 0.5))
        if image_width * image_height > self.max_area:
            resized_width = math.sqrt(self.max_area * aspect_ratio)
            resized_height = self.max_area / resized_width
            b_width_rounded = self.round_to_steps(resized_width)
            b_height_in_wr = self.round_to_steps(b_width_rounded / aspect_ratio)
            ar_width_rounded = b_width_rounded / b_height_in_wr
            b_height_rounded = self.round_to_steps(resized_height)
            b_width_in_hr = self.round_to_steps(b_height_rounded * aspect_ratio)
            ar_height_rounded = b_width_in_hr / b_height_rounded
            if abs(ar_width_rounded - aspect_ratio) < abs(ar_height_rounded - aspect_ratio):
                resized_size = (b_width_rounded, int(b_width_rounded / aspect_ratio + 0.5))
            else:
                resized_size = (int(b_height_rounded * aspect_ratio + 0.5), b_height_rounded)
        else:
            resized_size = (image_width, image_height)
        return tuple(side - side % self.reso_steps for side in resized_size), resized_size


@given(
    SIDES,
    SIDES,
    st.sampled_from([(512, 256, 1024, 64), (768, 512, 768, 64), (640, 300, 1000, 32), (96, 64, 128, 32)]),
    st.booleans(),
)
def test_every_picture_is_placed_as_kohya_places_it(
    width: int, height: int, table: tuple[int, int, int, int], upscale: bool
) -> None:
    resolution, minimum, maximum, step = table
    theirs = KohyaBucketManager(not upscale, resolution, minimum, maximum, step)
    try:
        bucket, scaled = theirs.select_bucket(width, height)
    except ZeroDivisionError:
        assume(False)  # its own end for a shape so extreme that a side becomes 0
    buckets = Buckets(minimum=minimum, maximum=maximum, step=step, upscale=upscale)
    assert place((width, height), resolution=resolution, buckets=buckets) == Placement(scaled, bucket)


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
    assert Placement((1024, 512), (512, 512)).crop() == (256, 0, 768, 512)


def test_minimum_and_maximum_are_rounded_to_the_step() -> None:
    assert bucket_sizes(512, 300, 1000, 64) == bucket_sizes(512, 256, 1024, 64)


@given(SIDES, SIDES)
def test_a_scaled_picture_covers_its_bucket(width: int, height: int) -> None:
    placed = place((width, height), resolution=512, buckets=Buckets())
    left, top, right, bottom = placed.crop()
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
