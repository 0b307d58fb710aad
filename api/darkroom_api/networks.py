"""Adapter networks that a LoraTraining can train. A new one is a class here and its layer in the trainer."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from darkroom_api.base import Model
from darkroom_api.storage import S3Uri

_CONVOLUTIONS_TOGETHER: Final = "give convRank and convAlpha together: alpha never follows rank by itself"
_NO_CONVOLUTIONS: Final = "targets.layers must be All for convRank: no other kind of layers holds convolutions"
_WHOLE_OR_NOT: Final = "give either fullMatrix or decomposeBoth, not both"


def _rules(*more: tuple[str, str]) -> ConfigDict:
    """Return a network's configuration with its rules in CEL, each with its message."""
    convolutions = (
        ("has(self.convRank) == has(self.convAlpha)", _CONVOLUTIONS_TOGETHER),
        (
            "!has(self.convRank) || !has(self.targets) || !has(self.targets.layers) || self.targets.layers == 'All'",
            _NO_CONVOLUTIONS,
        ),
    )
    rules = (*convolutions, *more)
    stated: list[JsonValue] = [{"rule": rule, "message": message} for rule, message in rules]
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": stated})


Glob = Annotated[str, Field(min_length=1, max_length=256)]


class Targets(Model):
    """The layers that take part. Without a word here it is those that kohya adapts."""

    layers: Literal["All", "Attention", "CrossAttention", "FeedForward"] = Field(
        default="All",
        description="Kind of layers: all, those of attention, of attention to the prompt alone (the UNet's attn2), or "
        "the two behind each attention.",
    )
    include: list[Glob] = Field(
        default_factory=list,
        max_length=64,
        description="Globs over the layers' names in kohya's files, such as lora_unet_output_blocks_0_1_*; * stands "
        "for any characters. A layer must match one. SDXL's blocks go by their names in diffusers as well "
        "(lora_unet_up_blocks_0_attentions_1_*). Default: every layer.",
    )
    exclude: list[Glob] = Field(
        default_factory=list, max_length=64, description="Globs of layers that are left out after all. Default: none."
    )


class InitialWeights(Model):
    """A file of the same network, trained on from where it stands."""

    uri: S3Uri = Field(
        description="Address of the file, s3://BUCKET/KEY: in kohya's format, or of a LoRA in that of diffusers and "
        "PEFT. Its ranks must be the network's, and every one of its layers must take part; a layer that it lacks "
        "begins at nothing. Where its alpha is another, it must be so by a power of two: anything else would round."
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        max_length=64,
        description="SHA-256 of the file, in hexadecimal; another file is refused.",
    )


class _Network(Model):
    """What all networks have: strength, where they are, and what they begin with."""

    model_config = _rules()
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
    targets: Targets = Field(default_factory=Targets, description="Which layers take part.")
    initial_weights: InitialWeights | None = Field(
        default=None, description="A trained file to begin with. Default: nothing, so that the base model is unchanged."
    )

    @model_validator(mode="after")
    def _convolutions_have_both(self) -> Self:
        if (self.conv_rank is None) != (self.conv_alpha is None):
            raise ValueError(_CONVOLUTIONS_TOGETHER)
        if self.conv_rank is not None and self.targets.layers != "All":
            raise ValueError(_NO_CONVOLUTIONS)
        return self


class LoRA(_Network):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685) of transformers, with convRank of resnets as well."""

    type: Literal["LoRA"] = "LoRA"


class DoRA(_Network):
    """LoRA for the direction of each input's weights, and a trained magnitude (Liu et al. 2024, arXiv 2402.09353).

    A magnitude belongs to a column of the weight, as in OneTrainer and LyCORIS' wd_on_output=False: of the two ways it
    is the one that A1111 and ComfyUI apply as it was trained. diffusers knows only the other one, and takes such a file
    for it without a word.
    """

    type: Literal["DoRA"] = "DoRA"


class LoHa(_Network):
    """Two pairs of factors whose products are multiplied number by number (Hyeon-Woo et al. 2022, arXiv 2108.06098).

    The update's rank is up to the square of rank, with twice the weights of a LoRA: 4 to 16 is usual.
    """

    type: Literal["LoHa"] = "LoHa"


class LoKr(_Network):
    """A Kronecker product of a small matrix and a larger one, as LyCORIS trains it (Yeh et al. 2024, arXiv 2309.14859).

    The larger one is a pair of factors of the given rank, or kept whole where that would save nothing. Where neither
    matrix has factors, the scale is 1 whatever alpha says: every reader of such files has it so.
    """

    model_config = _rules(
        (
            "!has(self.fullMatrix) || !self.fullMatrix || !has(self.decomposeBoth) || !self.decomposeBoth",
            _WHOLE_OR_NOT,
        ),
    )
    type: Literal["LoKr"] = "LoKr"
    factor: int | None = Field(
        default=None,
        ge=2,
        le=1024,
        description="Sides of the small matrix, as near as a layer's numbers of inputs and outputs can be divided; 4 "
        "to 16 is usual, and less trains more weights. Default: as near their square roots as can be.",
    )
    decompose_both: bool = Field(
        default=False, description="Make the small matrix a pair of factors as well, where that saves weights."
    )
    full_matrix: bool = Field(
        default=False,
        description="Keep the larger matrix whole in every layer: the ranks and alphas then do not count.",
    )

    @model_validator(mode="after")
    def _whole_or_not(self) -> Self:
        if self.full_matrix and self.decompose_both:
            raise ValueError(_WHOLE_OR_NOT)
        return self


Network = Annotated[
    LoRA | LoHa | LoKr | DoRA,
    Field(discriminator="type", json_schema_extra={"x-darkroom-default-type": "LoRA"}),
]
"""The union of all networks."""
