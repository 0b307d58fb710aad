"""Masked loss: which places of a picture are trained."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from darkroom_api.base import Model

MASK_ENDING: Final = "-masklabel.png"
"""What a mask's name has instead of its picture's ending, as OneTrainer has it. Such a file is never a picture."""


class Mask(Model):
    """Weighs the loss of each place by a mask, in training and in validation; every picture must have one."""

    source: Literal["Alpha", "File"] = Field(
        description="Alpha takes the picture's transparency: opaque places count, and the model sees the picture on "
        "white. File takes a grey picture of the same size beside it, such as photo-masklabel.png for photo.jpg: "
        "white places count, black ones do not."
    )
    unmasked_weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Least weight of any place; at 0 whatever the mask leaves out is not trained.",
    )
    normalize: bool = Field(
        default=False,
        description="Take the mean of a picture's loss over what counts of it, so that small subjects are learned as "
        "fast as large ones. False takes it over all of the picture, as kohya does.",
    )
