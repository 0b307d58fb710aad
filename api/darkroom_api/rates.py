"""The optimizers as each kind of training has them: with its usual learning rates, and with or without a text encoder.

A rate is AdamW's, times what the algorithm usually takes beside it: 0.3 for Lion, 2 for CAME, 10 for
ScheduleFreeAdamW. The trainer builds by the classes of `darkroom_api.optimizers`, thus these need no builders.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from darkroom_api.optimizers import (
    BY_TYPE,
    CAME,
    Adafactor,
    AdamW,
    AdamW8bit,
    DAdaptAdam,
    Lion,
    Prodigy,
    ScheduleFreeAdamW,
    TrainsTextEncoder,
    rules_of_two_rates,
)


def _rate(default: float, of: str) -> Any:
    return Field(default=default, gt=0, le=10, description=f"Peak learning rate of {of}.")


class _Adapter(TrainsTextEncoder):
    text_encoder_learning_rate: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="Peak learning rate of the text encoder's adapter; 0 leaves the text encoder untrained. "
        "Default: half of learningRate; all of it for Prodigy and DAdaptAdam.",
    )


class LoraAdamW(AdamW, _Adapter):
    learning_rate: float = _rate(1e-4, "the UNet's adapter")


class LoraAdamW8bit(AdamW8bit, _Adapter):
    learning_rate: float = _rate(1e-4, "the UNet's adapter")


class LoraLion(Lion, _Adapter):
    learning_rate: float = _rate(3e-5, "the UNet's adapter")


class LoraAdafactor(Adafactor, _Adapter):
    learning_rate: float = _rate(1e-4, "the UNet's adapter")


class LoraCAME(CAME, _Adapter):
    learning_rate: float = _rate(2e-4, "the UNet's adapter")


class LoraProdigy(Prodigy, _Adapter):
    model_config = rules_of_two_rates("Prodigy")
    learning_rate: float = _rate(1.0, "the UNet's adapter")


class LoraDAdaptAdam(DAdaptAdam, _Adapter):
    model_config = rules_of_two_rates("DAdaptAdam")
    learning_rate: float = _rate(1.0, "the UNet's adapter")


class LoraScheduleFreeAdamW(ScheduleFreeAdamW, _Adapter):
    learning_rate: float = _rate(1e-3, "the UNet's adapter")


LoraOptimizer = Annotated[
    LoraAdamW
    | LoraAdamW8bit
    | LoraLion
    | LoraAdafactor
    | LoraCAME
    | LoraProdigy
    | LoraDAdaptAdam
    | LoraScheduleFreeAdamW,
    BY_TYPE,
]


class _WholeModel(TrainsTextEncoder):
    text_encoder_learning_rate: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Peak learning rate of the text encoder; 0 leaves it untrained. It learns a subject faster and "
        "forgets the rest sooner than the UNet: try half of learningRate.",
    )


class ModelAdamW(AdamW, _WholeModel):
    learning_rate: float = _rate(2e-6, "the UNet")


class ModelAdamW8bit(AdamW8bit, _WholeModel):
    learning_rate: float = _rate(2e-6, "the UNet")


class ModelLion(Lion, _WholeModel):
    learning_rate: float = _rate(6e-7, "the UNet")


class ModelAdafactor(Adafactor, _WholeModel):
    learning_rate: float = _rate(2e-6, "the UNet")


class ModelCAME(CAME, _WholeModel):
    learning_rate: float = _rate(4e-6, "the UNet")


class ModelProdigy(Prodigy, _WholeModel):
    model_config = rules_of_two_rates("Prodigy")
    learning_rate: float = _rate(1.0, "the UNet")


class ModelDAdaptAdam(DAdaptAdam, _WholeModel):
    model_config = rules_of_two_rates("DAdaptAdam")
    learning_rate: float = _rate(1.0, "the UNet")


class ModelScheduleFreeAdamW(ScheduleFreeAdamW, _WholeModel):
    learning_rate: float = _rate(2e-5, "the UNet")


ModelOptimizer = Annotated[
    ModelAdamW
    | ModelAdamW8bit
    | ModelLion
    | ModelAdafactor
    | ModelCAME
    | ModelProdigy
    | ModelDAdaptAdam
    | ModelScheduleFreeAdamW,
    BY_TYPE,
]


class EmbeddingAdamW(AdamW):
    learning_rate: float = _rate(5e-4, "the embedding")


class EmbeddingAdamW8bit(AdamW8bit):
    learning_rate: float = _rate(5e-4, "the embedding")


class EmbeddingLion(Lion):
    learning_rate: float = _rate(1.5e-4, "the embedding")


class EmbeddingAdafactor(Adafactor):
    learning_rate: float = _rate(5e-4, "the embedding")


class EmbeddingCAME(CAME):
    learning_rate: float = _rate(1e-3, "the embedding")


class EmbeddingProdigy(Prodigy):
    learning_rate: float = _rate(1.0, "the embedding")


class EmbeddingDAdaptAdam(DAdaptAdam):
    learning_rate: float = _rate(1.0, "the embedding")


class EmbeddingScheduleFreeAdamW(ScheduleFreeAdamW):
    learning_rate: float = _rate(5e-3, "the embedding")


EmbeddingOptimizer = Annotated[
    EmbeddingAdamW
    | EmbeddingAdamW8bit
    | EmbeddingLion
    | EmbeddingAdafactor
    | EmbeddingCAME
    | EmbeddingProdigy
    | EmbeddingDAdaptAdam
    | EmbeddingScheduleFreeAdamW,
    BY_TYPE,
]
