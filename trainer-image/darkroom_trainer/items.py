"""Pictures in their buckets: what batches, latents and validation are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from darkroom_api.failures import FailureReason
from darkroom_api.training import Training
from darkroom_trainer.augmenting import AS_IT_IS, Changes
from darkroom_trainer.buckets import Placement, place
from darkroom_trainer.dataset import Picture
from darkroom_trainer.errors import RunError


@dataclass(frozen=True)
class Item:
    """A picture, how it is brought to its bucket, and how it is changed this time."""

    picture: Picture
    placement: Placement
    changes: Changes = AS_IT_IS

    @property
    def crop(self) -> tuple[int, int, int, int]:
        """Return the box that is shown of the scaled picture: left, top, right, bottom, before it is mirrored."""
        return self.placement.crop(self.changes.corner)

    @property
    def corner(self) -> tuple[int, int]:
        """Return how much is cut off to the left and above, as it is shown: a mirrored picture's left was its right."""
        left, top, right, _ = self.crop
        return self.placement.scaled[0] - right if self.changes.mirrored else left, top

    def changed(self, changes: Changes) -> Item:
        """Return the same picture with these changes."""
        return replace(self, changes=changes)


def placed(pictures: Sequence[Picture], training: Training, *, path: str) -> tuple[Item, ...]:
    """Give every picture its bucket.

    Args:
        pictures: Of one dataset.
        training: Resolution and buckets.
        path: The field that names the dataset, for messages.

    Raises:
        RunError: A picture is too small for any bucket.
    """
    items = tuple(
        Item(picture, place(picture.size, resolution=training.resolution, buckets=training.buckets))
        for picture in pictures
    )
    small = [item.picture for item in items if 0 in item.placement.bucket]
    if small:
        names = "\n".join(f"{it.name}: {it.size[0]}x{it.size[1]} pixels" for it in small)
        raise RunError(
            FailureReason.DATASET_REJECTED,
            f"{path}: {len(small)} pictures are smaller than training.buckets.step, "
            f"{training.buckets.step} pixels, and may not be enlarged:\n{names}",
            advice="Give larger pictures, or set training.buckets.upscale to true.",
        )
    return items
