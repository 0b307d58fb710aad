"""The LoraTraining resource: a LoRA per epoch."""

from __future__ import annotations

from pydantic import Field

from darkroom_api.networks import LoRA, Network
from darkroom_api.rates import LoraAdamW, LoraOptimizer
from darkroom_api.regularization import Regularization
from darkroom_api.samples import LoraSamples
from darkroom_api.training import Training, TrainingSpec


class LoraSettings(Training):
    """How long, how large and how fast a LoRA is trained."""

    optimizer: LoraOptimizer = Field(default_factory=LoraAdamW, description="How weights are updated.")


class LoraTrainingSpec(TrainingSpec):
    """What to train a LoRA on, and how."""

    samples: LoraSamples = Field(
        default_factory=LoraSamples, description="Pictures painted before training and after epochs."
    )
    network: Network = Field(default_factory=LoRA, description="The adapter that is trained.")
    training: LoraSettings = Field(default_factory=LoraSettings, description="How long, how large and how fast.")
    regularization: Regularization | None = Field(
        default=None, description="Pictures of the subject's class, so that it is not forgotten. Default: none."
    )
