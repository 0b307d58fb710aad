"""Adapter networks that a LoraTraining can train. A new one is a class here and its builder in the trainer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from darkroom_api.base import Model


class LoRA(Model):
    """Low-rank adaptation of the attention and feed-forward layers (Hu et al. 2021, arXiv 2106.09685)."""

    type: Literal["LoRA"] = "LoRA"
    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the two factors.")
    alpha: float = Field(
        default=16,
        gt=0,
        le=4096,
        description="Scale: the update is multiplied by alpha / rank. Never follows rank by itself.",
    )


Network = LoRA
"""The union of all networks (one, so far)."""
