"""Sample pictures: what a run paints before training and after epochs, so that people can choose an epoch by eye."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from darkroom_api.base import Model

Prompt = Annotated[str, Field(max_length=2000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class Hires(Model):
    """A second pass over a picture that was enlarged: more detail than a first pass at that size, and one subject."""

    scale: float = Field(default=2.0, gt=1, le=4, description="Enlargement of width and height.")
    denoise: float = Field(
        default=0.4, gt=0, le=1, description="Share of the noise that the second pass begins with; more changes more."
    )


class Samples(Model):
    """Pictures painted before training and after epochs, with the same noise each time."""

    prompts: list[Prompt] = Field(
        default_factory=list, max_length=16, description="One picture per prompt and seed. Empty: no samples."
    )
    negative_prompt: Prompt = Field(default="", description="What the pictures should not show.")
    seeds: list[Seed] = Field(
        default_factory=lambda: [1],
        min_length=1,
        max_length=16,
        description="Seeds of the initial noise, each once. Default: [1].",
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.all(seed, self.exists_one(other, other == seed))",
                    "message": "each seed may be given once",
                }
            ]
        },
    )
    every_epochs: int = Field(default=1, ge=1, le=10_000, description="Epochs between two sets of samples.")
    steps: int = Field(default=20, ge=1, le=200, description="Denoising steps.")
    sampler: Literal["DDIM", "Euler", "EulerAncestral", "DPMPlusPlus2M", "DPMPlusPlus2MKarras", "UniPC"] = Field(
        default="DDIM",
        description="How noise is taken away: by DDIM, by Euler's method without or with new noise at each step, by "
        "DPM-Solver++ of second order with even or Karras' steps, or by UniPC.",
    )
    guidance_scale: float = Field(default=7.0, ge=1, le=30, description="Strength of classifier-free guidance.")
    width: int | None = Field(
        default=None, ge=64, le=4096, multiple_of=8, description="Width in pixels. Default: training.resolution."
    )
    height: int | None = Field(
        default=None, ge=64, le=4096, multiple_of=8, description="Height in pixels. Default: training.resolution."
    )

    hires: Hires | None = Field(
        default=None, description="Paints each picture larger in a second pass over the first. Default: off."
    )

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("each seed may be given once")
        return seeds


class LoraSamples(Samples):
    """Pictures painted with the adapter."""

    lora_scale: float = Field(
        default=1.0, ge=0, le=2, description="Strength of the adapter in the pictures, as in <lora:name:0.8>."
    )
