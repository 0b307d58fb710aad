"""What becomes of a caption each time that its picture is shown, in kohya's words and by its rules."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from darkroom_api.base import Model

_TWO_SEPARATORS = "keepTokensSeparator must differ from separator"


class Captions(Model):
    """What happens to a caption each time it is shown; in the order of these fields."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.keepTokensSeparator) || !has(self.separator) || "
                    "self.keepTokensSeparator != self.separator",
                    "message": _TWO_SEPARATORS,
                }
            ]
        }
    )
    prefix: str = Field(
        default="",
        max_length=2000,
        description="Put before every caption with a space between, so write 'sks robot,' to make a tag of it. "
        "Its tags are shuffled, dropped and counted by keepTokens like the others. Pictures of the class have neither "
        "prefix nor suffix. Default: none.",
    )
    suffix: str = Field(
        default="", max_length=2000, description="Put after every caption with a space between. Default: none."
    )
    dropout: float = Field(default=0.0, ge=0, le=1, description="Probability that the caption is shown empty.")
    dropout_every_epochs: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Epochs between two in which every caption is shown empty; 3 means the epochs 3, 6, 9 and so on, "
        "counted from 1, and 1 means all of them. 0: none.",
    )
    several: Literal["First", "Random"] = Field(
        default="First",
        description="Which line of a caption file counts: the first, or a random one each time. kohya's "
        "enable_wildcard is Random together with wildcards.",
    )
    wildcards: bool = Field(
        default=False,
        description="Shows a random one of '{red|blue|pale green}' each time. '{{' and '}}' are braces as such.",
    )
    separator: str = Field(
        default=",",
        min_length=1,
        max_length=16,
        description="What stands between tags. Tags that are shuffled or dropped are joined by ', ' again.",
    )
    shuffle: bool = Field(default=False, description="Shuffle the tags.")
    keep_tokens: int = Field(
        default=0, ge=0, le=255, description="Number of first tags that are neither shuffled nor dropped."
    )
    keep_tokens_separator: str | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Such as '|||': in captions that have it the tags before it are kept instead of the first "
        "keepTokens, and those after a second one are kept at the end. It is never shown. Default: none.",
    )
    tag_dropout: float = Field(
        default=0.0, ge=0, le=1, description="Probability that a tag is left out; those that are kept never are."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.keep_tokens_separator == self.separator:
            raise ValueError(_TWO_SEPARATORS)
        return self
