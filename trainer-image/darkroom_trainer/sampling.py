"""Sample pictures: what diffusers' `StableDiffusionPipeline` paints with the same weights, to the bit.

Not the pipeline itself, since it is slow to import, wants a folder of configurations, and cannot be stopped between
two steps. A test holds the equality: base model + `load_lora_weights(checkpoint)` + prompt and seed give this picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from darkroom_api.samples import Hires, Samples
from darkroom_api.text_encoding import TextEncoding
from darkroom_trainer.conditioning import Conditions, Frame, encode_prompts, joined, unet_arguments
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.fitting import Fitting, tiled
from darkroom_trainer.offloading import at_work
from darkroom_trainer.samplers import DRAWS_NOISE, open_sampler

_PLAIN: Final = TextEncoding()
T = TypeVar("T")


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
    sampler: str = "DDIM"
    hires: Hires | None = None


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
                sampler=samples.sampler,
                hires=samples.hires,
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
    generator = torch.Generator().manual_seed(picture.seed)
    size = (picture.width, picture.height)
    scheduler = open_sampler(picture.sampler, model.scheduler.config, steps=picture.steps, device=model.device)
    latents = _noise(model, size, generator) * scheduler.init_noise_sigma
    told = _Told(model, picture, encoding, before_step, generator)
    painted = _decode(model, told.denoise(latents, scheduler, scheduler.timesteps, size=size))
    return _second_pass(painted, picture.hires, told) if picture.hires else painted


def _second_pass(painted: Image.Image, hires: Hires, told: _Told) -> Image.Image:
    """Enlarge a picture, noise it and take that noise away: what diffusers' img2img does with the same seed."""
    model, picture = told.model, told.picture
    width, height = (round(side * hires.scale / 8) * 8 for side in painted.size)
    large = painted.resize((width, height), Image.Resampling.LANCZOS)
    generator = torch.Generator().manual_seed(picture.seed)
    pixels_HWC = torch.from_numpy(np.asarray(large, dtype=np.float32) / 255)
    pixels_1CHW = (pixels_HWC.permute(2, 0, 1).unsqueeze(0) * 2 - 1).to(model.device, model.vae.dtype)
    mean, deviation = Fitting("encode a sample whole").do(
        *_ways(model.vae, model.device, lambda: _encode(model.vae, pixels_1CHW))
    )
    clean = mean + deviation * _noise(model, (width, height), generator).to(model.vae.dtype)
    clean = (clean * model.vae.config.scaling_factor).to(model.dtype)
    scheduler = open_sampler(picture.sampler, model.scheduler.config, steps=picture.steps, device=model.device)
    first = max(picture.steps - max(1, int(picture.steps * hires.denoise)), 0) * scheduler.order
    scheduler_timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    latents = scheduler.add_noise(clean, _noise(model, (width, height), generator), scheduler_timesteps[:1])
    again = replace(told, generator=generator)
    return _decode(model, again.denoise(latents, scheduler, scheduler_timesteps, size=(width, height)))


@dataclass(frozen=True)
class _Told:
    """What the passes of one picture share."""

    model: StableDiffusion
    picture: Picture
    encoding: TextEncoding
    before_step: Callable[[], None]
    generator: torch.Generator

    def denoise(
        self, latents: torch.Tensor, scheduler: Any, timesteps: torch.Tensor, *, size: tuple[int, int]
    ) -> torch.Tensor:
        """Take the noise away, with guidance if it is above 1."""
        model, picture = self.model, self.picture
        guided = picture.guidance_scale > 1
        texts = [picture.negative_prompt, picture.prompt] if guided else [picture.prompt]
        with at_work(model.text_parts.values(), model.device):
            conditions = [encode_prompts(model, [text], self.encoding) for text in texts]
        predict = _Predict(model, conditions, Frame.whole(size))
        draws = {"generator": self.generator} if picture.sampler in DRAWS_NOISE else {}
        for timestep in timesteps:
            self.before_step()
            noise, *given = predict(scheduler.scale_model_input(latents, timestep), timestep)
            if given:
                noise = noise + picture.guidance_scale * (given[0] - noise)
            latents = scheduler.step(noise, timestep, latents, return_dict=False, **draws)[0]
        return latents


@dataclass(frozen=True)
class _Predict:
    """What the UNet says of latents under each of several prompts: in one batch, or one by one where that is too much.

    As it was done in one step of a picture it is done in all that follow.
    """

    model: StableDiffusion
    conditions: list[Conditions]
    frame: Frame
    fitting: Fitting = field(default_factory=lambda: Fitting("paint with both prompts at once"))

    def __call__(self, latents_1CHW: torch.Tensor, timestep: torch.Tensor) -> list[torch.Tensor]:
        return self.fitting.do(
            lambda: self._ask(latents_1CHW, timestep, self.conditions),
            lambda: [it for one in self.conditions for it in self._ask(latents_1CHW, timestep, [one])],
        )

    def _ask(
        self, latents_1CHW: torch.Tensor, timestep: torch.Tensor, conditions: list[Conditions]
    ) -> list[torch.Tensor]:
        count = len(conditions)
        told = unet_arguments(self.model, joined(conditions), [self.frame] * count)
        latents_BCHW = torch.cat([latents_1CHW] * count)
        return list(self.model.unet(latents_BCHW, timestep, return_dict=False, **told)[0].chunk(count))


def _noise(model: StableDiffusion, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Draw noise on the CPU, so that a seed means the same picture on every device."""
    shape = (1, model.unet.config.in_channels, size[1] // 8, size[0] // 8)
    return torch.randn(shape, generator=generator, dtype=model.dtype).to(model.device)


def _decode(model: StableDiffusion, latents: torch.Tensor) -> Image.Image:
    vae, scaled = model.vae, latents.to(model.vae.dtype) / model.vae.config.scaling_factor
    decoded = Fitting("decode a sample whole").do(
        *_ways(vae, model.device, lambda: vae.decode(scaled, return_dict=False)[0])
    )
    pixels_HWC = (decoded[0] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return Image.fromarray((pixels_HWC * 255).round().astype(np.uint8))


def _encode(vae: AutoencoderKL, pixels_1CHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    distribution = vae.encode(pixels_1CHW).latent_dist
    return distribution.mean, distribution.std


def _ways(vae: AutoencoderKL, device: torch.device, whole: Callable[[], T]) -> tuple[Callable[[], T], Callable[[], T]]:
    """Return how something is done with the VAE on a device: whole, or in tiles."""

    def at_once() -> T:
        with at_work([vae], device):
            return whole()

    def in_tiles() -> T:
        with tiled(vae):
            return at_once()

    return at_once, in_tiles
