"""A base model in memory. Neighbours: `loading` makes it, `darkroom_trainer.conditioning` reads prompts with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from darkroom_trainer.families.configurations import Family, TextEncoderFile
from darkroom_trainer.families.naming import Link
from darkroom_trainer.weights_file import WeightsFile

UNET_PART: Final = "unet"
"""The UNet's name as a part; text encoders have those of diffusers: `text_encoder`, `text_encoder_2`."""


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with what reads its prompts."""

    file: TextEncoderFile
    model: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    words: dict[str, list[int]] = field(default_factory=dict)
    """New words that its model has vectors for, as `prompts` reads them."""


@dataclass(frozen=True)
class Nature:
    """What a model is, apart from its weights."""

    family: Family
    predicts_velocity: bool = False
    """Whether the UNet predicts v (Salimans and Ho 2022, arXiv 2202.00512) and not the noise."""
    zero_terminal_snr: bool = False
    """Whether its noise schedule ends in pure noise (Lin et al. 2023, arXiv 2305.08891)."""


@dataclass(frozen=True)
class StableDiffusion:
    """A base model in memory, ready to be trained on or painted with."""

    file: WeightsFile
    """What it was loaded from."""
    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: tuple[TextEncoder, ...]
    scheduler: DDIMScheduler
    links: dict[str, list[Link]]
    """Where a single file keeps the weights of each part."""
    device: torch.device
    dtype: torch.dtype
    """Number format of UNet and text encoders; the VAE's is always fp32."""

    @property
    def text_parts(self) -> dict[str, torch.nn.Module]:
        """Return the text encoders by the names of their parts."""
        return {encoder.file.part: encoder.model for encoder in self.text_encoders}

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        """Return what can be trained: UNet and text encoders, by the names of their parts."""
        return {UNET_PART: self.unet, **self.text_parts}

    @property
    def nature(self) -> Nature:
        """Return what the model is."""
        config = self.scheduler.config
        return Nature(self.family, config.prediction_type == "v_prediction", bool(config.rescale_betas_zero_snr))
