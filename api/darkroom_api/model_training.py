"""The ModelTraining resource: a whole checkpoint per epoch, by fine-tuning or DreamBooth."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from darkroom_api.base import Model
from darkroom_api.rates import ModelAdamW, ModelOptimizer
from darkroom_api.regularization import Regularization
from darkroom_api.training import Checkpoints, Training, TrainingSpec

_NOTHING_TRAINED: Final = (
    "parts.unet None needs training.optimizer.textEncoderLearningRate greater than 0, or nothing would be trained"
)
_NOTHING_TO_STOP: Final = (
    "parts.textEncoderUntilStep needs training.optimizer.textEncoderLearningRate greater than 0: "
    "the text encoder is not trained"
)
_ONE_AVERAGE: Final = "ema must be left out for optimizer ScheduleFreeAdamW, which averages the weights itself"
_NOTHING_LEFT: Final = (
    "parts.textEncoderUntilStep needs a part of the UNet, or nothing would be trained after that step"
)

_TRAINS_TEXT_ENCODER: Final = (
    "has(self.training) && has(self.training.optimizer) && has(self.training.optimizer.textEncoderLearningRate) && "
    "self.training.optimizer.textEncoderLearningRate > 0.0"
)


class Parts(Model):
    """Which weights are trained. Those of the text encoder are if optimizer.textEncoderLearningRate is above 0."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.unet) || self.unet != 'None' || !has(self.textEncoderUntilStep)",
                    "message": _NOTHING_LEFT,
                }
            ]
        }
    )
    unet: Literal["All", "Attention", "CrossAttention", "None"] = Field(
        default="All",
        description="Weights of the UNet that are trained: all, those of the attention layers, those of the attention "
        "to the caption, or none.",
    )
    text_encoder_until_step: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps after which the text encoder stays as it is. Default: it is trained to the end.",
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.unet == "None" and self.text_encoder_until_step is not None:
            raise ValueError(_NOTHING_LEFT)
        return self


class EMA(Model):
    """An exponential moving average of the trained weights."""

    decay: float = Field(
        default=0.9999,
        gt=0,
        lt=1,
        description="Share of the average that each step keeps; it looks back over about 1 / (1 - decay) steps. "
        "The first steps keep less, so that the average is not stuck to the base model.",
    )


class ModelCheckpoints(Checkpoints):
    """What is kept of the run, and as which kind of file."""

    format: Literal["Safetensors", "Ckpt"] = Field(
        default="Safetensors",
        description="Kind of file: .safetensors, or .ckpt for programs that know nothing else.",
    )

    @property
    def suffix(self) -> str:
        """Return how the names of the files of weights end."""
        return {"Safetensors": ".safetensors", "Ckpt": ".ckpt"}[self.format]


class ModelSettings(Training):
    """How long, how large and how fast a model is trained."""

    optimizer: ModelOptimizer = Field(default_factory=ModelAdamW, description="How weights are updated.")


class ModelTrainingSpec(TrainingSpec):
    """What to train a model on, and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.ema) || !has(self.training) || !has(self.training.optimizer) || "
                    "!has(self.training.optimizer.type) || self.training.optimizer.type != 'ScheduleFreeAdamW'",
                    "message": _ONE_AVERAGE,
                },
                {
                    "rule": "!has(self.parts) || !has(self.parts.unet) || self.parts.unet != 'None' || "
                    f"({_TRAINS_TEXT_ENCODER})",
                    "message": _NOTHING_TRAINED,
                },
                {
                    "rule": f"!has(self.parts) || !has(self.parts.textEncoderUntilStep) || ({_TRAINS_TEXT_ENCODER})",
                    "message": _NOTHING_TO_STOP,
                },
            ]
        }
    )
    parts: Parts = Field(
        default_factory=Parts,
        description="Which weights are trained. Those of the text encoder are "
        "if training.optimizer.textEncoderLearningRate is greater than 0.",
    )
    ema: EMA | None = Field(
        default=None,
        description="Averages the trained weights over the steps; checkpoints, samples and validation then take the "
        "average. It needs memory for the trained weights once more. Default: off.",
    )
    training: ModelSettings = Field(default_factory=ModelSettings, description="How long, how large and how fast.")
    checkpoints: ModelCheckpoints = Field(default_factory=ModelCheckpoints, description="What is kept of the run.")
    regularization: Regularization | None = Field(
        default=None, description="Pictures of the subject's class, so that it is not forgotten. Default: none."
    )

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if self.ema is not None and self.training.optimizer.type == "ScheduleFreeAdamW":
            raise ValueError(_ONE_AVERAGE)
        if self.training.optimizer.text_encoder_learning_rate > 0:
            return self
        if self.parts.unet == "None":
            raise ValueError(_NOTHING_TRAINED)
        if self.parts.text_encoder_until_step is not None:
            raise ValueError(_NOTHING_TO_STOP)
        return self
