"""What a training minimises: noise, timesteps, weights and the shape of the loss."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from darkroom_api.base import Model

_ONE_WEIGHT = "give either minSnrGamma or debiased, not both: each weighs timesteps by their signal-to-noise ratio"
_ONE_COLOUR = "give either noiseOffset or multiresNoise, not both: each adds noise of low frequency"
_NOISE_ALONE = "predictionType must be VPrediction for zeroTerminalSnr: pure noise says nothing of the picture"
_SOME_TIMESTEP = "timesteps.minimum must be less than timesteps.maximum"


class L2(Model):
    """The square of the error."""

    type: Literal["L2"] = "L2"


class _Robust(Model):
    delta: float = Field(
        default=0.1, gt=0, le=1, description="Error from which the loss grows as a line, not as a square."
    )
    schedule: Literal["Constant", "Exponential", "SNR"] = Field(
        default="SNR",
        description="How delta moves with the timestep: not at all, or down from 1 at the least noise to delta at the "
        "most, exponentially or with the signal-to-noise ratio.",
    )


class SmoothL1(_Robust):
    """Pseudo-Huber loss that tends to twice the error's size (Khrapov et al. 2024, arXiv 2403.16728)."""

    type: Literal["SmoothL1"] = "SmoothL1"


class Huber(_Robust):
    """Pseudo-Huber loss that is the square of small errors (Khrapov et al. 2024, arXiv 2403.16728)."""

    type: Literal["Huber"] = "Huber"


Loss = Annotated[
    L2 | SmoothL1 | Huber, Field(discriminator="type", json_schema_extra={"x-darkroom-default-type": "L2"})
]


class MultiresNoise(Model):
    """Noise of several resolutions, one upon the other."""

    iterations: int = Field(
        default=6, ge=1, le=10, description="Resolutions, each 2 to 4 times coarser than the one before."
    )
    discount: float = Field(default=0.3, gt=0, lt=1, description="Share of each resolution's strength in the next.")


class Timesteps(Model):
    """The timesteps that are trained, of the 1000 that the model knows; 0 has the least noise."""

    minimum: int = Field(default=0, ge=0, le=999, description="First timestep.")
    maximum: int = Field(default=1000, ge=1, le=1000, description="First timestep that is left out again.")


class Objective(Model):
    """What the loss weighs."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.zeroTerminalSnr) || !self.zeroTerminalSnr || !has(self.predictionType) || "
                    "self.predictionType != 'Epsilon'",
                    "message": _NOISE_ALONE,
                },
                {"rule": "!has(self.minSnrGamma) || !has(self.debiased) || !self.debiased", "message": _ONE_WEIGHT},
                {
                    "rule": "!has(self.noiseOffset) || self.noiseOffset == 0.0 || !has(self.multiresNoise)",
                    "message": _ONE_COLOUR,
                },
                {
                    "rule": "!has(self.timesteps) || !has(self.timesteps.minimum) || !has(self.timesteps.maximum) || "
                    "self.timesteps.minimum < self.timesteps.maximum",
                    "message": _SOME_TIMESTEP,
                },
            ]
        }
    )
    prediction_type: Literal["Epsilon", "VPrediction"] | None = Field(
        default=None,
        description="What the model predicts: the noise, or v (Salimans and Ho 2022, arXiv 2202.00512), as the "
        "768-pixel models of SD 2.x do. Default: v if the file is marked so (SDXL's v_pred), else the noise.",
    )
    zero_terminal_snr: bool | None = Field(
        default=None,
        description="Ends the noise schedule in pure noise (Lin et al. 2023, arXiv 2305.08891); for models that "
        "predict v. Default: true if the file is marked so (SDXL's ztsnr), else false.",
    )
    min_snr_gamma: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Clamps the loss weight of easy timesteps (Hang et al. 2023, arXiv 2303.09556). Default: off.",
    )
    debiased: bool = Field(
        default=False,
        description="Weighs a timestep's loss by 1/sqrt(signal-to-noise ratio) (Yu et al. 2023, arXiv 2310.08442).",
    )
    noise_offset: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Strength of noise that is the same all over a channel, so that very dark and very bright pictures "
        "can be learnt; 0.05 to 0.1 is usual. 0: none.",
    )
    multires_noise: MultiresNoise | None = Field(
        default=None, description="Noise of several resolutions, to the same end as noiseOffset. Default: none."
    )
    input_perturbation: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Strength of noise that the model sees but is not asked for (Ning et al. 2023, arXiv 2301.11706); "
        "0.1 is usual. 0: none.",
    )
    loss: Loss = Field(default_factory=L2, description="How errors are counted.")
    timesteps: Timesteps = Field(default_factory=Timesteps, description="Timesteps that are trained.")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.zero_terminal_snr and self.prediction_type == "Epsilon":
            raise ValueError(_NOISE_ALONE)
        if self.min_snr_gamma is not None and self.debiased:
            raise ValueError(_ONE_WEIGHT)
        if self.noise_offset and self.multires_noise is not None:
            raise ValueError(_ONE_COLOUR)
        if self.timesteps.minimum >= self.timesteps.maximum:
            raise ValueError(_SOME_TIMESTEP)
        return self
