"""Learning-rate schedules. A new one is a class here and its function in the trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from darkroom_api.base import Model


class _Schedule(Model):
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000, description="Steps of linear rise from 0 to the peak.")


class Constant(_Schedule):
    """The peak learning rate throughout."""

    type: Literal["Constant"] = "Constant"


class Cosine(_Schedule):
    """Half a cosine from the peak down (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts)."""

    type: Literal["Cosine"] = "Cosine"
    minimum_factor: float = Field(
        default=0.0, ge=0, le=1, description="Share of the peak that the last step still has."
    )


Schedule = Annotated[
    Constant | Cosine, Field(discriminator="type", json_schema_extra={"x-darkroom-default-type": "Constant"})
]
