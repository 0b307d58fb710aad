"""Choosing the epoch: pictures that are never trained on, and what follows from the loss over them."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from darkroom_api.base import Model
from darkroom_api.storage import S3Uri


class ValidationDataset(Model):
    """Pictures of their own for validation."""

    uri: S3Uri = Field(
        description="Prefix in the layout of dataset.uri. Each picture counts once, whatever its folder's repeats; "
        "one that is also trained on is refused."
    )


class EarlyStopping(Model):
    """When training ends before its last epoch, successfully."""

    patience: int = Field(
        ge=1,
        le=10_000,
        description="Validations in a row without a new minimum of the loss after which the run ends.",
    )
    minimum_improvement: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="A new minimum must lie below the last one by more than this, in units of the loss.",
    )


class Validation(Model):
    """Which pictures judge the epochs, and how often. The least loss over them makes status.bestEpoch."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.images) != has(self.dataset)",
                    "message": "give either images or dataset, not both and not neither",
                }
            ]
        },
    )
    images: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Number of pictures, told apart by content, that are taken out of the dataset and never trained "
        "on. The seed chooses them; at least one must be left.",
    )
    dataset: ValidationDataset | None = Field(
        default=None, description="Other pictures, used for validation only; the dataset is trained on whole."
    )
    every_epochs: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Epochs between two validations; the first is before training, and the last epoch always has one.",
    )
    draws: int = Field(
        default=8,
        ge=1,
        le=100,
        description="Times that each picture is looked at in a validation: each with a noise of its own, at timesteps "
        "spread evenly over those that are trained, the same in every epoch.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Ends the run when the loss no longer falls. Default: all epochs are trained."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.images is None) == (self.dataset is None):
            raise ValueError("give either images or dataset, not both and not neither")
        return self
