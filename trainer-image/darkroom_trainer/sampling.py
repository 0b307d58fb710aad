"""Sample pictures: what diffusers' `StableDiffusionPipeline` paints with the same weights, to the bit.

Not the pipeline itself, since it is slow to import, wants a folder of configurations, and cannot be stopped between
two steps. A test holds the equality: base model + `load_lora_weights(checkpoint)` + prompt and seed give this picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from darkroom_api.text_encoding import TextEncoding
from darkroom_api.training import Samples
from darkroom_trainer.conditioning import Frame, encode_prompts, joined, unet_arguments
from darkroom_trainer.families.model import StableDiffusion

_PLAIN: Final = TextEncoding()


@dataclass(frozen=True)
class Picture:
    """What to paint."""

    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float


def wanted_pictures(samples: Samples, *, resolution: int) -> list[tuple[int, Picture]]:
    """Return every picture of a set of samples with its prompt's index."""
    return [
        (
            index,
            Picture(
                prompt=prompt,
                negative_prompt=samples.negative_prompt,
                seed=seed,
                width=samples.width or resolution,
                height=samples.height or resolution,
                steps=samples.steps,
                guidance_scale=samples.guidance_scale,
            ),
        )
        for index, prompt in enumerate(samples.prompts)
        for seed in samples.seeds
    ]


def _go_on() -> None:
    """Do nothing."""


@torch.no_grad()
def paint(
    model: StableDiffusion,
    picture: Picture,
    *,
    encoding: TextEncoding = _PLAIN,
    before_step: Callable[[], None] = _go_on,
) -> Image.Image:
    """Paint one picture.

    Args:
        model: The base model, with an adapter in it or not.
        picture: What to paint.
        encoding: How prompts are read.
        before_step: Called before each denoising step; may raise to give up.
    """
    scheduler = DDIMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(picture.steps, device=model.device)
    guided = picture.guidance_scale > 1
    texts = [picture.negative_prompt, picture.prompt] if guided else [picture.prompt]
    conditions = joined([encode_prompts(model, [text], encoding) for text in texts])
    told = unet_arguments(model, conditions, [Frame.whole((picture.width, picture.height))] * len(texts))
    latents = _first_noise(model, picture) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        before_step()
        inputs = scheduler.scale_model_input(torch.cat([latents] * len(texts)), timestep)
        noise = model.unet(inputs, timestep, return_dict=False, **told)[0]
        if guided:
            without, given = noise.chunk(2)
            noise = without + picture.guidance_scale * (given - without)
        latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
    return _decode(model, latents)


def _first_noise(model: StableDiffusion, picture: Picture) -> torch.Tensor:
    """Draw the start on the CPU, so that a seed means the same picture on every device."""
    shape = (1, model.unet.config.in_channels, picture.height // 8, picture.width // 8)
    generator = torch.Generator().manual_seed(picture.seed)
    return torch.randn(shape, generator=generator, dtype=model.dtype).to(model.device)


def _decode(model: StableDiffusion, latents: torch.Tensor) -> Image.Image:
    decoded = model.vae.decode(latents.to(model.vae.dtype) / model.vae.config.scaling_factor, return_dict=False)[0]
    pixels_HWC = (decoded[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((pixels_HWC * 255).round().astype(np.uint8))
