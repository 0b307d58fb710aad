"""Optimizers that a training can ask for. A new one is a class here and its builder in the trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from darkroom_api.base import Model


class _Optimizer(Model):
    learning_rate: float = Field(default=1e-4, gt=0, le=10, description="Peak learning rate of the UNet's adapter.")
    text_encoder_learning_rate: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="Peak learning rate of the text encoder's adapter; 0 leaves the text encoder untrained. "
        "Default: half of learningRate.",
    )
    weight_decay: float = Field(default=1e-2, ge=0, le=10, description="Decoupled weight decay.")


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    type: Literal["AdamW"] = "AdamW"
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(default=1e-8, gt=0, le=1, description="Added to the denominator.")


class Adafactor(_Optimizer):
    """Adam's second moment factored into rows and columns (Shazeer and Stern 2018, arXiv 1804.04235)."""

    type: Literal["Adafactor"] = "Adafactor"
    beta2_decay: float = Field(
        default=-0.8,
        ge=-1,
        le=0,
        description="Exponent by which the second moment's decay approaches 1 with the steps.",
    )
    clip_threshold: float = Field(
        default=1.0, gt=0, le=1000, description="Root mean square above which an update is scaled down."
    )


Optimizer = Annotated[
    AdamW | Adafactor, Field(discriminator="type", json_schema_extra={"x-darkroom-default-type": "AdamW"})
]
