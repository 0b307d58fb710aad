"""Aspect-ratio buckets by kohya's rules: pictures of similar shape are scaled and cropped to one size.

Source: `BucketManager` and `make_bucket_resolutions` of kohya-ss/sd-scripts, followed to the rounding,
since a LoRA that was planned there must see the same pictures here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from darkroom_api.training import Buckets

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Placement:
    """How a picture is brought to its bucket: scaled to `scaled`, then its centre is cropped to `bucket`."""

    scaled: Size
    bucket: Size

    @property
    def slack(self) -> Size:
        """Return how much of the scaled picture's width and height is cut off."""
        return self.scaled[0] - self.bucket[0], self.scaled[1] - self.bucket[1]

    @property
    def is_cropped(self) -> bool:
        """Tell whether anything is cut off."""
        return self.scaled != self.bucket

    def crop(self, corner: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """Return the box to cut out of the scaled picture: left, top, right, bottom; the middle without a corner."""
        left, top = corner or (self.slack[0] // 2, self.slack[1] // 2)
        return left, top, left + self.bucket[0], top + self.bucket[1]


def place(size: Size, *, resolution: int, buckets: Buckets) -> Placement:
    """Choose a picture's bucket; sides of 0 mean that the picture is too small for any."""
    if not buckets.enabled:
        return cover(size, (resolution, resolution))
    if not buckets.upscale:
        return _shrink(size, area=resolution * resolution, step=buckets.step)
    sizes = bucket_sizes(resolution, buckets.minimum, buckets.maximum, buckets.step)
    if size in sizes:
        return cover(size, size)
    return cover(size, _nearest(size, sizes))


@lru_cache(maxsize=8)
def bucket_sizes(resolution: int, minimum: int, maximum: int, step: int) -> tuple[Size, ...]:
    """Return all buckets of at most resolution² pixels whose sides are multiples of the step, sorted."""
    area = resolution * resolution
    minimum, maximum = rounded_limits(minimum, maximum, step)
    square = resolution // step * step
    sizes = {(square, square)}
    for width in range(minimum, maximum + 1, step):
        if width and (height := min(maximum, area // width // step * step)) >= minimum and height:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def rounded_limits(minimum: int, maximum: int, step: int) -> tuple[int, int]:
    """Return the sides that a bucket may have as multiples of the step: rounded down, and up."""
    return minimum // step * step, -(-maximum // step) * step


def _nearest(size: Size, sizes: Sequence[Size]) -> Size:
    """Return the bucket of the least error in width / height; the first of equals, as numpy's argmin."""
    ratio = size[0] / size[1]
    return min(sizes, key=lambda bucket: abs(bucket[0] / bucket[1] - ratio))


def cover(size: Size, bucket: Size) -> Placement:
    """Scale so that the picture just covers the bucket."""
    is_wider = size[0] / size[1] > bucket[0] / bucket[1]
    scale = bucket[1] / size[1] if is_wider else bucket[0] / size[0]
    return Placement((int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)), bucket)


def _shrink(size: Size, *, area: int, step: int) -> Placement:
    """Scale down to the area if larger, then crop to multiples of the step; minimum and maximum do not count here."""
    scaled = size if size[0] * size[1] <= area else _fit_area(size[0] / size[1], area, step)
    return Placement(scaled, (scaled[0] - scaled[0] % step, scaled[1] - scaled[1] % step))


def _fit_area(ratio: float, area: int, step: int) -> Size:
    """Return the size of about this area whose rounded width or height, whichever fits better, is a multiple."""
    width = math.sqrt(area * ratio)
    by_width = _round(width, step)
    by_height = _round(area / width, step)
    width_error = _ratio_error(by_width, _round(by_width / ratio, step), ratio)
    height_error = _ratio_error(_round(by_height * ratio, step), by_height, ratio)
    if width_error < height_error:
        return by_width, int(by_width / ratio + 0.5)
    return int(by_height * ratio + 0.5), by_height


def _round(length: float, step: int) -> int:
    rounded = int(length + 0.5)
    return rounded - rounded % step


def _ratio_error(width: int, height: int, ratio: float) -> float:
    # kohya divides by zero here for extreme shapes; an infinite error lets the other side decide.
    return abs(width / height - ratio) if height else math.inf
