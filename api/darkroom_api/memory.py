"""What a run needs of its device's memory, and what it does differently because that was not enough."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from darkroom_api.base import Model

OutOfMemory = Literal["Fail", "SplitBatch", "SplitBatchThenCheckpoint", "ReduceResolution"]


class Adaptation(Model):
    """What a run does otherwise than its spec says since memory lacked; it stays so to the run's end."""

    micro_batch: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Pictures that pass through the model together at most; a step still follows the mean over all of "
        "its pictures.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Whether activations are computed twice though the spec does not ask for it."
    )
    resolution: int | None = Field(
        default=None, ge=1, le=4096, description="Side in pixels that takes the place of training.resolution."
    )
    tiled_latents: bool = Field(
        default=False, description="Whether pictures were too large to be encoded whole, and were encoded in tiles."
    )


AS_ASKED: Final = Adaptation()
"""Nothing is done otherwise."""


class Memory(Model):
    """What is known of a run's memory."""

    adaptation: Adaptation | None = Field(
        default=None, description="What is done otherwise than the spec says, because memory lacked."
    )
