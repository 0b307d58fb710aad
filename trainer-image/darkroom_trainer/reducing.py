"""Buckets made smaller for a run whose device has no room for them: the last thing that is done about memory.

The course stays as it is. Each bucket shrinks by the same factor, so the pictures of a batch still have one size, and
steps, epochs and order are those that were planned. Validation keeps its size, or its losses could not be compared.
Neighbour: `adapting` decides when.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from darkroom_api.training import Training
from darkroom_trainer.buckets import Size, cover
from darkroom_trainer.items import Item

_STEPS: Final = 8
"""A reduction takes off one part of so many of the resolution, in whole steps of the buckets: a quarter of the area at
first. Single steps of a fine grid would save next to nothing, and each costs the attempt at a step."""
_WITHOUT_BUCKETS: Final = 64
"""Step in pixels where there are no buckets: what the UNet divides by."""


@dataclass(frozen=True)
class Reduction:
    """Smaller buckets of the same shapes, as far as their step allows."""

    resolution: int
    """What the spec's resolution becomes, in pixels."""
    asked: int
    """The spec's."""
    step: int
    minimum: int
    """Shortest side of a bucket."""

    def item(self, item: Item) -> Item:
        """Return a picture in the smaller bucket that takes the place of its own."""
        return replace(item, placement=cover(item.picture.size, self.size(item.placement.bucket)))

    def size(self, bucket: Size) -> Size:
        """Return what a bucket becomes."""
        width, height = (self._side(side) for side in bucket)
        return width, height

    def _side(self, side: int) -> int:
        least = min(side, max(self.step, self.minimum // self.step * self.step))
        return max(least, side * self.resolution // self.asked // self.step * self.step)


def reduction(training: Training, resolution: int | None) -> Reduction | None:
    """Return how the buckets of a spec become those of a smaller resolution; None without one."""
    if resolution is None:
        return None
    minimum = training.buckets.minimum if training.buckets.enabled else 0
    return Reduction(resolution, training.resolution, _step(training), minimum)


def smaller_resolution(training: Training, now: int) -> int | None:
    """Return the next resolution below; None if it were less than half of what the spec asks for, or than a bucket."""
    step = _step(training)
    smaller = now - max(step, training.resolution // _STEPS // step * step)
    least = training.buckets.minimum if training.buckets.enabled else step
    return smaller if smaller >= max(least, training.resolution / 2) else None


def _step(training: Training) -> int:
    return training.buckets.step if training.buckets.enabled else _WITHOUT_BUCKETS
