"""What a running pod says about itself at ``GET /progress``; the operator treats it as untrusted input."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from darkroom_api.base import Model
from darkroom_api.memory import Memory

MAXIMUM_PROGRESS_BYTES: Final = 256 * 1024
"""A larger answer is cut off unread."""


class Stage(StrEnum):
    """What the pod is doing."""

    STARTING = "Starting"
    FETCHING = "Fetching"
    INSPECTING = "Inspecting"
    CACHING = "Caching"
    RESUMING = "Resuming"
    TRAINING = "Training"
    VALIDATING = "Validating"
    SAMPLING = "Sampling"
    SAVING = "Saving"
    UPLOADING = "Uploading"
    DONE = "Done"


MAXIMUM_ADVICE: Final = 12
"""Sentences of advice that a plan may carry."""
Advice = Annotated[str, Field(max_length=400)]


class Bucket(Model):
    """Pictures trained at one size."""

    width: int = Field(ge=1, le=65536, description="Width in pixels.")
    height: int = Field(ge=1, le=65536, description="Height in pixels.")
    images: int = Field(ge=0, description="Pictures, repeats counted.")


class Plan(Model):
    """What the dataset turned out to mean in steps."""

    images: int = Field(ge=0, description="Pictures that are trained on, repeats not counted.")
    validation_images: int = Field(default=0, ge=0, description="Pictures that only the validation sees.")
    buckets: list[Bucket] = Field(
        default_factory=list, max_length=512, description="Sizes and how many pictures each has."
    )
    steps_per_epoch: int = Field(ge=0, description="Optimizer steps of one epoch.")
    total_steps: int = Field(ge=0, description="Optimizer steps of the whole run.")
    estimated_seconds: int | None = Field(
        default=None,
        ge=0,
        description="Time that all these steps take at the measured speed, with what lies between epochs. "
        "Known after the first steps.",
    )
    advice: list[Advice] = Field(
        default_factory=list,
        max_length=MAXIMUM_ADVICE,
        description="What is unusual about steps, pictures or settings, and what to do; empty if all is usual.",
    )


Loss = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EarlyStop(Model):
    """Why a run ended before the last epoch that was asked for."""

    epoch: int = Field(ge=1, description="The last epoch trained.")
    validations: int = Field(ge=1, description="Validations in a row that brought no new minimum.")


class CheckpointRecord(Model):
    """A checkpoint whose manifest lies in the store. Its address follows from `darkroom_api.layout`."""

    epoch: int = Field(ge=0, description="Epoch after which it was taken.")
    step: int = Field(ge=0, description="Optimizer steps done by then.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the weights file.")
    size_bytes: int = Field(ge=0, description="Size of the weights file.")
    num_samples: int = Field(default=0, ge=0, le=256, description="Sample pictures of the epoch in the store.")
    validation_loss: Loss | None = Field(default=None, description="Loss over the validation pictures, if measured.")


class Progress(Model):
    """A pod's report."""

    run: str = Field(max_length=63, description="The run id; a report of another run is ignored.")
    pod: str = Field(max_length=253, description="The pod's own name.")
    stage: Stage = Field(description="What the pod is doing.")
    message: str = Field(default="", max_length=512, description="More about the stage, for a person.")
    plan: Plan | None = Field(default=None, description="Known once the dataset is inspected.")
    epoch: int = Field(default=0, ge=0, description="Epoch being trained, from 1; 0 before the first.")
    step: int = Field(default=0, ge=0, description="Optimizer steps done.")
    steps_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Speed over the last steps."
    )
    estimated_remaining_seconds: int | None = Field(
        default=None, ge=0, description="Time to the end, sampling and saving included."
    )
    loss: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None, description="Mean loss of the last steps."
    )
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Learning rate of the last step."
    )
    validation_loss: Loss | None = Field(default=None, description="Loss of the last validation.")
    best_epoch: int | None = Field(
        default=None, ge=1, description="Epoch of the least validation loss among those with a checkpoint in the store."
    )
    checkpoints: list[CheckpointRecord] = Field(
        default_factory=list, max_length=1024, description="Checkpoints in the store, oldest first."
    )
    memory: Memory | None = Field(default=None, description="Known once training may begin.")
    updated: datetime = Field(description="When this was true.")
