"""Adapter networks that a LoraTraining can train. A new one is a class here and its layer in the trainer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from darkroom_api.base import Model

_CONVOLUTIONS_TOGETHER = "give convRank and convAlpha together: alpha never follows rank by itself"


class _Network(Model):
    """What all networks have: strength, and where they are."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "has(self.convRank) == has(self.convAlpha)", "message": _CONVOLUTIONS_TOGETHER}
            ]
        }
    )
    rank: int = Field(
        default=16, ge=1, le=1024, description="Rank of a pair of factors, in linear layers and 1x1 convolutions."
    )
    alpha: float = Field(
        default=16,
        gt=0,
        le=4096,
        description="Scale: the update is multiplied by alpha / rank. Never follows rank by itself.",
    )
    conv_rank: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Rank in the 3x3 convolutions of the UNet's resnets, downsamplers and upsamplers (LoCon); the "
        "resnets' other layers then take part with rank. Default: nothing outside the transformers is adapted.",
    )
    conv_alpha: float | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="Scale in those convolutions: convAlpha / convRank. Goes with convRank.",
    )

    @model_validator(mode="after")
    def _convolutions_have_both(self) -> Self:
        if (self.conv_rank is None) != (self.conv_alpha is None):
            raise ValueError(_CONVOLUTIONS_TOGETHER)
        return self


class LoRA(_Network):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685) of transformers, with convRank of resnets as well."""

    type: Literal["LoRA"] = "LoRA"


class DoRA(_Network):
    """LoRA for the direction of each input's weights, and a trained magnitude (Liu et al. 2024, arXiv 2402.09353).

    A magnitude belongs to a column of the weight, as in OneTrainer and LyCORIS' wd_on_output=False: of the two ways it
    is the one that A1111 and ComfyUI apply as it was trained. diffusers knows only the other one.
    """

    type: Literal["DoRA"] = "DoRA"


Network = Annotated[
    LoRA | DoRA,
    Field(discriminator="type", json_schema_extra={"x-darkroom-default-type": "LoRA"}),
]
"""The union of all networks."""
