"""How prompts are read, in training and in samples alike."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from darkroom_api.base import Model


class TextEncoding(Model):
    """How captions and the prompts of samples become conditions of the UNet."""

    maximum_tokens: Literal[75, 150, 225] = Field(
        default=75, description="Tokens of a caption that are read; more than 75 in chunks of 75, as A1111 does."
    )
    clip_skip: int = Field(
        default=1,
        ge=1,
        le=12,
        description="Take the states of this layer of the text encoder, counted from the last; SD 1.5 alone, where 2 "
        "is usual for anime models. SD 2.x and SDXL always take the last but one.",
    )
    weighted: bool = Field(
        default=False, description="Read (word:1.2), (word) and [word] as weights, as A1111 does, not as characters."
    )
