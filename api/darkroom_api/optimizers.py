"""Optimizers that a training can ask for. A new one is a class here and its builder in the trainer.

Which learning rates are usual depends on what is trained: specs hold the subclasses of `darkroom_api.rates`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from darkroom_api.base import Model

LEAST_RELATIVE_RATE: Final = 0.1
"""Below it, a rate that multiplies a learnt step size is nearly always one meant for AdamW."""


class _Optimizer(Model):
    learns_step_size: ClassVar[bool] = False
    """Whether learningRate only multiplies a step size that the optimizer finds."""

    learning_rate: float = Field(default=1e-4, gt=0, le=10, description="Peak learning rate.")
    weight_decay: float = Field(
        default=1e-2,
        ge=0,
        le=10,
        description="Decoupled weight decay: a step takes this share times the rate in force off a weight.",
    )


class _Adam(_Optimizer):
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(default=1e-8, gt=0, le=1, description="Added to the denominator.")


class AdamW(_Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    type: Literal["AdamW"] = "AdamW"


class AdamW8bit(_Adam):
    """AdamW whose moments take 8 bits a number (Dettmers et al. 2022, arXiv 2110.02861), those of large weights.

    It runs on a CPU as well: 0.4 s a step for rank 16, twenty times what AdamW takes, beside seconds for the model.
    """

    type: Literal["AdamW8bit"] = "AdamW8bit"


class Lion(_Optimizer):
    """The sign of a momentum (Chen et al. 2023, arXiv 2302.06675): a smaller rate and more decay than AdamW."""

    type: Literal["Lion"] = "Lion"
    learning_rate: float = Field(default=3e-5, gt=0, le=10, description="Peak learning rate.")
    weight_decay: float = Field(
        default=1e-1,
        ge=0,
        le=10,
        description="Decoupled weight decay: a step takes this share times the rate in force off a weight.",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Decay of the second moment.")


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
    relative_step: bool = Field(
        default=False,
        description="True steps relative to each weight's size, as the paper does: by the smaller of the learning rate "
        "and 1/sqrt(step), times the weight's root mean square (at least 0.001). A learningRate about 0.01 is usual "
        "then. False steps by the learning rate itself.",
    )


class CAME(_Optimizer):
    """Adafactor's memory with a confidence in each update (Luo et al. 2023, arXiv 2307.02047)."""

    type: Literal["CAME"] = "CAME"
    learning_rate: float = Field(default=2e-4, gt=0, le=10, description="Peak learning rate.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    instability_beta: float = Field(
        default=0.9999, ge=0, lt=1, description="Decay of the squared distance between updates and their mean."
    )
    clip_threshold: float = Field(
        default=1.0, gt=0, le=1000, description="Root mean square above which an update is scaled down."
    )


def _relative_rate(kind: str) -> str:
    return (
        f"learningRate must be at least {LEAST_RELATIVE_RATE} for {kind}, and is usually 1: "
        "it multiplies the step size that is learnt"
    )


def _one_rate(kind: str) -> str:
    return f"textEncoderLearningRate must equal learningRate, or be 0, for {kind}: it learns one step size for all"


def _rules(*rules: tuple[str, str]) -> ConfigDict:
    """Return a model's configuration with rules in CEL, each with its message."""
    stated: list[JsonValue] = [{"rule": rule, "message": message} for rule, message in rules]
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": stated})


def _rule_of_distance(kind: str) -> tuple[str, str]:
    return f"!has(self.learningRate) || self.learningRate >= {LEAST_RELATIVE_RATE}", _relative_rate(kind)


def rules_of_two_rates(kind: str) -> ConfigDict:
    """Return the rules of an optimizer that learns one step size for UNet and text encoder, as CEL."""
    is_one_rate = (
        "!has(self.textEncoderLearningRate) || self.textEncoderLearningRate == 0.0 || "
        "self.textEncoderLearningRate == (has(self.learningRate) ? self.learningRate : 1.0)"
    )
    return _rules((is_one_rate, _one_rate(kind)), _rule_of_distance(kind))


class _DistanceAdapted(_Adam):
    """Adam that learns its step size d; the rate in force is d times learningRate."""

    learns_step_size: ClassVar[bool] = True

    learning_rate: float = Field(default=1.0, gt=0, le=10, description="Peak learning rate.")
    initial_d: float = Field(default=1e-6, gt=0, le=1, description="First guess of the step size d.")
    growth_rate: float | None = Field(
        default=None, gt=1, le=1e6, description="Most that d may grow by in one step, as a factor. Default: no limit."
    )
    use_bias_correction: bool = Field(
        default=False, description="Correct the moments for their start at zero, as Adam does."
    )

    @model_validator(mode="after")
    def _rate_is_relative(self) -> Self:
        if self.learning_rate < LEAST_RELATIVE_RATE:
            raise ValueError(_relative_rate(str(getattr(self, "type", ""))))
        return self


class Prodigy(_DistanceAdapted):
    """Adam that learns its step size (Mishchenko and Defazio 2023, arXiv 2306.06101)."""

    model_config = _rules(_rule_of_distance("Prodigy"))
    type: Literal["Prodigy"] = "Prodigy"
    d_coefficient: float = Field(
        default=1.0, gt=0, le=100, description="Multiplies the learnt step size; 0.5 to 2 is usual."
    )
    d_beta: float | None = Field(
        default=None, ge=0, lt=1, description="Decay of the estimate of d. Default: the square root of beta2."
    )
    safeguard_warmup: bool = Field(
        default=False, description="Leave the warm-up's small rates out of the estimate of d; wise with any warm-up."
    )


class DAdaptAdam(_DistanceAdapted):
    """Adam by D-Adaptation, which learns its step size (Defazio and Mishchenko 2023, arXiv 2301.07733)."""

    model_config = _rules(_rule_of_distance("DAdaptAdam"))
    type: Literal["DAdaptAdam"] = "DAdaptAdam"


class ScheduleFreeAdamW(_Adam):
    """AdamW that averages its weights instead of lowering its rate (Defazio et al. 2024, arXiv 2405.15682)."""

    model_config = _rules(
        ("!has(self.beta1) || self.beta1 > 0.0", "beta1 must be greater than 0 for ScheduleFreeAdamW")
    )
    type: Literal["ScheduleFreeAdamW"] = "ScheduleFreeAdamW"
    learning_rate: float = Field(default=1e-3, gt=0, le=10, description="Peak learning rate.")
    averaging_power: float = Field(
        default=0.0, ge=0, le=100, description="Power of the step's number by which later steps weigh more in the mean."
    )
    rate_weight_power: float = Field(
        default=2.0, ge=0, le=100, description="Power of the highest rate so far by which steps weigh in the mean."
    )

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.beta1 == 0:  # the average is found by dividing by it
            raise ValueError("beta1 must be greater than 0 for ScheduleFreeAdamW")
        return self


BY_TYPE: Final[Any] = Field(discriminator="type", json_schema_extra={"x-darkroom-default-type": "AdamW"})
"""What makes a union of optimizers one field of a spec."""

Optimizer = Annotated[
    AdamW | AdamW8bit | Lion | Adafactor | CAME | Prodigy | DAdaptAdam | ScheduleFreeAdamW,
    BY_TYPE,
]


class TrainsTextEncoder(_Optimizer):
    """An optimizer of a kind of training that may train the text encoder, at a rate of its own."""

    text_encoder_learning_rate: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="Peak learning rate of the text encoder.",
    )

    @property
    def text_encoder_share(self) -> float:
        """Return the default rate of the text encoder as a share of the UNet's: it overtrains sooner."""
        return 1.0 if self.learns_step_size else 0.5

    @model_validator(mode="after")
    def _one_rate_for_all(self) -> Self:
        if self.learns_step_size and self.text_encoder_learning_rate not in (None, 0.0, self.learning_rate):
            raise ValueError(_one_rate(str(getattr(self, "type", ""))))
        return self
