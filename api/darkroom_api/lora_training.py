"""The LoraTraining resource: a LoRA per epoch."""

from __future__ import annotations

from pydantic import Field

from darkroom_api.networks import LoRA, Network
from darkroom_api.training import TrainingSpec


class LoraTrainingSpec(TrainingSpec):
    """What to train a LoRA on, and how."""

    network: Network = Field(default_factory=LoRA, description="The adapter that is trained.")
