"""Which changes a picture is shown with this time: mirrored, cropped elsewhere, in other colours.

Here they are only drawn; `pixels` makes them. Amounts are those of kohya-ss/sd-scripts (`AugHelper.color_aug`), except
that its gamma of up to 1.05 on numbers up to 255 also brightens by up to a third and cuts off highlights; here white
stays white.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from darkroom_api.augmentation import Augmentation
from darkroom_trainer.buckets import Placement

_COLOR_SHARE: Final = 0.33
_HUE_DEGREES: Final = 16.0
_GAMMAS: Final = (0.95, 1.05)


@dataclass(frozen=True)
class Changes:
    """How a showing differs from the picture as it is."""

    mirrored: bool = False
    corner: tuple[int, int] | None = None
    """Left and top of the crop in the scaled picture; None is the crop of its middle."""
    hue: float = 0.0
    """Degrees that are added to it."""
    gamma: float = 1.0

    @property
    def are_known_ahead(self) -> bool:
        """Tell whether they may return, so that the encoded picture is worth keeping."""
        return self.corner is None and self.hue == 0 and self.gamma == 1


AS_IT_IS: Final = Changes()


def draw_changes(spec: Augmentation, placement: Placement, rng: random.Random) -> Changes:
    """Draw the changes of one showing."""
    mirrored = spec.flip and rng.random() < 0.5
    corner = _draw_corner(placement, rng) if spec.random_crop and placement.is_cropped else None
    hue, gamma = _draw_color(rng) if spec.color and rng.random() < _COLOR_SHARE else (0.0, 1.0)
    return Changes(mirrored, corner, hue, gamma)


def changes_known_ahead(spec: Augmentation, placement: Placement) -> list[Changes]:
    """Return all changes that a picture will have again and again."""
    if spec.random_crop and placement.is_cropped:
        return []
    return [AS_IT_IS, Changes(mirrored=True)] if spec.flip else [AS_IT_IS]


def _draw_corner(placement: Placement, rng: random.Random) -> tuple[int, int]:
    most_left, most_top = placement.slack
    return rng.randint(0, most_left), rng.randint(0, most_top)


def _draw_color(rng: random.Random) -> tuple[float, float]:
    if rng.random() < 0.5:
        return rng.uniform(-_HUE_DEGREES, _HUE_DEGREES), 1.0
    return 0.0, rng.uniform(*_GAMMAS)
