"""What is changed in a picture each time that it is shown."""

from __future__ import annotations

from pydantic import Field

from darkroom_api.base import Model


class Augmentation(Model):
    """Changes at random from one showing of a picture to the next; validation sees every picture as it is."""

    flip: bool = Field(
        default=False,
        description="Mirrors a picture, left for right, in half of its showings; wrong for whatever is not symmetric, "
        "such as writing or a parting. Costs no more than a second look of the VAE before training.",
    )
    color: bool = Field(
        default=False,
        description="Moves the hue by up to 16 degrees or the gamma by up to 5 %, in a third of the showings; those "
        "pass through the VAE again.",
    )
    random_crop: bool = Field(
        default=False,
        description="Takes what fits into the bucket from a random place instead of the middle. Pictures that are "
        "larger than their bucket once they are scaled pass through the VAE at every showing.",
    )
