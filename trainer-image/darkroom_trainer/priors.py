"""Pictures of the subject's class beside the subject's own: each picture of a step comes with one of the class.

DreamBooth's loss (Ruiz et al. 2023, arXiv 2208.12242, §3.3): the subject's mean plus the prior weight times the class's
mean, in every step. Where pictures of both kinds are mixed at random, the weight that is asked for holds on average at
best. Neighbours: `batches` has the subject's pictures, `class_pictures` paints those of the class if none are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from darkroom_trainer.buckets import Size
from darkroom_trainer.items import Item
from darkroom_trainer.randomness import shuffler


@dataclass(frozen=True)
class Prior:
    """An endless stream of the class's pictures: all in random order, then all in another."""

    items: tuple[Item, ...] = field(repr=False)
    """Each as often as its folder repeats it."""
    weight: float
    seed: int

    def batches(self, first: int, num_pictures: int, *, batch_size: int) -> list[list[Item]]:
        """Return a part of the stream in batches of one bucket each.

        Args:
            first: How many of the stream's pictures come before.
            num_pictures: How many to take.
            batch_size: Pictures of a batch at most.
        """
        by_bucket: dict[Size, list[Item]] = {}
        for index in range(first, first + num_pictures):
            item = self._order(index // len(self.items))[index % len(self.items)]
            by_bucket.setdefault(item.placement.bucket, []).append(item)
        return [
            items[start : start + batch_size]
            for _, items in sorted(by_bucket.items())
            for start in range(0, len(items), batch_size)
        ]

    def _order(self, number: int) -> list[Item]:
        if number not in self._recent_orders:
            for old in [it for it in self._recent_orders if it < number - 1]:
                del self._recent_orders[old]
            order = list(self.items)
            shuffler(self.seed, "prior", number).shuffle(order)
            self._recent_orders[number] = order
        return self._recent_orders[number]

    @cached_property
    def _recent_orders(self) -> dict[int, list[Item]]:
        """Return the place where the orders at hand are kept: a step may end one and begin the next."""
        return {}


def repeated(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return each picture as often as its folder repeats it."""
    return tuple(item for item in items for _ in range(item.picture.repeats))
