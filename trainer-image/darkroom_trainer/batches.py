"""The course of a run: which pictures are shown together, and at which optimizer step.

Everything follows from the pictures, the spec and the seed, so a resumed run needs nothing but its step. Pictures for
validation get their buckets here as well, and never come into a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

from darkroom_api.augmentation import Augmentation
from darkroom_api.masks import Mask
from darkroom_api.progress import Bucket, Plan
from darkroom_api.training import Training
from darkroom_api.validation import Validation
from darkroom_trainer.augmenting import changes_known_ahead, draw_changes
from darkroom_trainer.buckets import Size
from darkroom_trainer.dataset import Picture
from darkroom_trainer.holding_out import each_once, hold_out, require_apart
from darkroom_trainer.items import Item, placed
from darkroom_trainer.priors import Prior
from darkroom_trainer.randomness import shuffler
from darkroom_trainer.reducing import Reduction


@dataclass(frozen=True)
class Course:
    """All steps of a run."""

    items: tuple[Item, ...]
    buckets: dict[Size, list[Item]] = field(repr=False)
    """Each picture as often as its folder repeats it, by size."""
    batch_size: int
    epochs: int
    seed: int
    accumulation: int = 1
    """Batches per optimizer step, over all processes."""
    validation: tuple[Item, ...] = ()
    """Pictures that are never trained on, each once."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How pictures that are trained on change from one showing to the next."""
    prior: Prior | None = None
    """Pictures of the class, which never change."""
    mask: Mask | None = None
    """Which places of pictures count."""
    reduction: Reduction | None = None
    """How buckets are made smaller in steps, where memory lacked for them."""

    @property
    def pictures(self) -> list[Picture]:
        """Return the pictures that are trained on, each once."""
        return [item.picture for item in self.items]

    @cached_property
    def batches_per_epoch(self) -> int:
        """Return the batches of an epoch: a bucket's last may be short, and two buckets never share one."""
        return sum(-(-len(items) // self.batch_size) for items in self.buckets.values())

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of an epoch: the last takes the batches that are left."""
        return -(-self.batches_per_epoch // self.accumulation)

    @property
    def total_steps(self) -> int:
        """Return the steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    @property
    def plan(self) -> Plan:
        """Return what the status shows."""
        buckets = [Bucket(width=w, height=h, images=len(items)) for (w, h), items in self.buckets.items()]
        return Plan(
            images=len(self.items),
            validation_images=len(self.validation),
            buckets=buckets[:512],
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
        )

    @property
    def changes_pictures(self) -> bool:
        """Tell whether a picture may be shown in more than one way."""
        return self.augmentation != Augmentation()

    @property
    def encodes_in_steps(self) -> bool:
        """Tell whether the VAE is needed while training, since not all that is shown is known ahead."""
        crops = self.augmentation.random_crop and any(it.placement.is_cropped for it in self.items)
        return crops or self.augmentation.color

    @property
    def known_ahead(self) -> list[Item]:
        """Return what will be shown again and again, the validation's pictures too: it is worth encoding beforehand."""
        trained = [
            item.changed(changes)
            for item in self.items
            for changes in changes_known_ahead(self.augmentation, item.placement)
        ]
        return [*trained, *self.validation, *dict.fromkeys(self.prior.items if self.prior else ())]

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of all that the course depends on; other pictures, captions or masks give another."""
        parts = [
            f"{it.picture.name}\0{it.picture.sha256}\0{it.picture.caption}\0{it.picture.repeats}\0{it.placement}"
            for it in self.items
        ]
        parts += [f"validation\0{it.picture.sha256}\0{it.picture.caption}\0{it.placement}" for it in self.validation]
        if self.prior:
            parts += [f"prior\0{it.picture.sha256}\0{it.picture.caption}\0{it.placement}" for it in self.prior.items]
        if self.changes_pictures:
            parts.append(f"augmentation\0{self.augmentation.model_dump_json(exclude_defaults=True)}")
        if self.mask:
            masks = "\0".join(str(it.picture.mask_sha256) for it in (*self.items, *self.validation))
            parts.append(f"mask\0{self.mask.model_dump_json(exclude_defaults=True)}\0{masks}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def window(self, step: int) -> list[list[Item]]:
        """Return the batches of a step, from 0.

        They follow each other in the epoch's order, of whatever buckets they are, as kohya accumulates. Each picture
        comes with changes of its own.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch not in self._recent_order:
            self._recent_order.clear()
            self._recent_order[epoch] = self.order(epoch)
        start = index * self.accumulation
        window = self._reduced(self._recent_order[epoch][start : start + self.accumulation])
        return self._changed(window, step) if self.changes_pictures else window

    def prior_window(self, step: int) -> list[list[Item]]:
        """Return the batches of the class's pictures that belong to a step: as many pictures as it has of its own."""
        if self.prior is None:
            return []
        epoch, index = divmod(step, self.steps_per_epoch)
        num_pictures = sum(len(batch) for batch in self.window(step))
        earlier = self._recent_order[epoch][: index * self.accumulation]
        first = epoch * sum(map(len, self.buckets.values())) + sum(map(len, earlier))
        return self._reduced(self.prior.batches(first, num_pictures, batch_size=self.batch_size))

    def _reduced(self, window: list[list[Item]]) -> list[list[Item]]:
        if self.reduction is None:
            return window
        return [[self.reduction.item(it) for it in batch] for batch in window]

    def _changed(self, window: list[list[Item]], step: int) -> list[list[Item]]:
        """Draw the changes of each picture of a step by its number: how the step is cut into batches changes none."""
        numbers = count()
        return [
            [
                it.changed(
                    draw_changes(
                        self.augmentation,
                        it.placement,
                        shuffler(self.seed, "augmentation", step, next(numbers)),
                    )
                )
                for it in batch
            ]
            for batch in window
        ]

    @cached_property
    def _recent_order(self) -> dict[int, list[list[Item]]]:
        """Return the place where the running epoch's order is kept."""
        return {}

    def order(self, epoch: int) -> list[list[Item]]:
        """Return an epoch's batches: shuffled inside buckets, cut, then the batches shuffled."""
        rng = shuffler(self.seed, "order", epoch)
        batches: list[list[Item]] = []
        for items in self.buckets.values():
            shown = list(items)
            rng.shuffle(shown)
            batches += [shown[start : start + self.batch_size] for start in range(0, len(shown), self.batch_size)]
        rng.shuffle(batches)
        return batches


def arrange(
    pictures: Sequence[Picture],
    training: Training,
    *,
    validation: Validation | None = None,
    processes: int = 1,
    others: Sequence[Picture] = (),
) -> Course:
    """Give every picture its bucket, and keep those for validation apart.

    Args:
        pictures: The dataset.
        training: How it is trained on.
        validation: Which pictures judge the training.
        processes: How many share a step; each takes as many batches of it.
        others: The validation's own dataset, if it has one.

    Raises:
        RunError: A picture is too small for any bucket, or the pictures cannot be divided so.
    """
    items = placed(pictures, training, path="spec.dataset.uri")
    held = frozenset[str]()
    if validation and validation.images is not None:
        held = hold_out(pictures, validation.images, seed=training.seed)
        others = [picture for picture in pictures if picture.sha256 in held]
    elif validation:
        require_apart(others, {picture.sha256 for picture in pictures})
    trained = tuple(item for item in items if item.picture.sha256 not in held)
    buckets: dict[Size, list[Item]] = {}
    for item in sorted(trained, key=lambda it: it.placement.bucket):
        buckets.setdefault(item.placement.bucket, []).extend([item] * item.picture.repeats)
    return Course(
        trained,
        buckets,
        training.batch_size,
        training.epochs,
        training.seed,
        accumulation=training.gradient_accumulation * processes,
        validation=placed(each_once(others), training, path="spec.validation.dataset.uri"),
        augmentation=training.augmentation,
        mask=training.mask,
    )
