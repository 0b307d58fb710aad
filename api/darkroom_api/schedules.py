"""Learning-rate schedules. A new one is a class here and its function in the trainer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from darkroom_api.base import Model

_ONE_WARMUP = "give either warmupSteps or warmupRatio, not both"


class _WarmedUp(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    # The server fills in warmupSteps 0 where none is given.
                    "rule": "!has(self.warmupRatio) || !has(self.warmupSteps) || self.warmupSteps == 0",
                    "message": _ONE_WARMUP,
                }
            ]
        }
    )
    warmup_steps: int = Field(
        default=0, ge=0, le=1_000_000, description="Optimizer steps of linear rise; the first has rate 0."
    )
    warmup_ratio: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The same as a share of all steps, rounded up. Give this or warmupSteps. Default: warmupSteps.",
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_ratio is not None and self.warmup_steps:
            raise ValueError(_ONE_WARMUP)
        return self


class _Falling(_WarmedUp):
    minimum_factor: float = Field(
        default=0.0, ge=0, le=1, description="Share of the peak that is left when the run ends."
    )


class Constant(_WarmedUp):
    """The peak learning rate throughout."""

    type: Literal["Constant"] = "Constant"


class Linear(_Falling):
    """A straight line from the peak down."""

    type: Literal["Linear"] = "Linear"


class Cosine(_Falling):
    """Half a cosine from the peak down (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts)."""

    type: Literal["Cosine"] = "Cosine"


class CosineWithRestarts(_Falling):
    """Half a cosine from the peak down, several times over (Loshchilov and Hutter 2017, arXiv 1608.03983)."""

    type: Literal["CosineWithRestarts"] = "CosineWithRestarts"
    cycles: int = Field(default=1, ge=1, le=1000, description="Descents, each from the peak.")


class Polynomial(_Falling):
    """A power of the time that is left; 1 is Linear."""

    type: Literal["Polynomial"] = "Polynomial"
    power: float = Field(default=1.0, gt=0, le=100, description="The power.")


class REX(_Falling):
    """Reflected exponential: longer near the peak than a line (Chen et al. 2021, arXiv 2107.04197)."""

    type: Literal["REX"] = "REX"


class OneCycle(Model):
    """One rise and one fall, each half a cosine (Smith and Topin 2018, arXiv 1708.07120); it is its own warm-up."""

    type: Literal["OneCycle"] = "OneCycle"
    rise: float = Field(default=0.3, gt=0, lt=1, description="Share of all steps in which the rate rises.")
    initial_divisor: float = Field(
        default=25.0, ge=1, le=1e6, description="The first step's rate is the peak divided by this."
    )
    final_divisor: float = Field(
        default=1e4, ge=1, le=1e9, description="The last step's rate is the first one's divided by this."
    )


Schedule = Annotated[
    Constant | Linear | Cosine | CosineWithRestarts | Polynomial | OneCycle | REX,
    Field(discriminator="type", json_schema_extra={"x-darkroom-default-type": "Constant"}),
]
