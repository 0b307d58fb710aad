"""Pretrain the autoencoder on drawn pictures: crops first, a quarter of the cost for the same edges."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name in all of torch's literature
from diffusers import AutoencoderKL

from examples.base_model.drawing import render, render_oddity, to_array
from examples.base_model.models import LATENT_SCALE, SIDE, build_vae
from examples.base_model.muon import Optimizer
from examples.base_model.scenes import sample_scene
from examples.base_model.training import Average, Run, Schedule, ignore, run_to_end
from examples.base_model.vae_init import initialise_

# Suffixes of tensors: B pictures, C channels, H rows, W columns.

NOISE = 0.04  # against latents of deviation near one: what the decoder must forgive a denoiser


@dataclass(frozen=True)
class VaeOptions:
    """How the autoencoder is trained."""

    steps: int
    pool: int = 6000  # pictures drawn once; at 128 px each takes 48 KiB
    batch: int = 16
    crop: int = 64
    whole_share: float = 0.2  # the last share of the steps works on whole pictures
    seed: int = 0
    save_every: int = 100


def draw_pool(count: int, *, seed: int, side: int = SIDE) -> torch.Tensor:
    """Draw pictures as bytes (B, C, H, W): half scenes, half what no caption describes."""
    rng = random.Random(seed)
    images = []
    for index in range(count):
        image = render(sample_scene(rng), size=(side, side)) if index % 2 else render_oddity(rng, side=side)
        images.append(to_array(image))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def to_unit(bytes_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Map bytes to [-1, 1]."""
    return bytes_BCHW.float() / 127.5 - 1.0


def _crops(pool: torch.Tensor, *, batch: int, side: int, rng: random.Random) -> torch.Tensor:
    crops = []
    for _ in range(batch):
        image = pool[rng.randrange(len(pool))]
        top, left = rng.randint(0, image.shape[1] - side), rng.randint(0, image.shape[2] - side)
        crop = image[:, top : top + side, left : left + side]
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return to_unit(torch.stack(crops))


def reconstruction_loss(output_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """Weigh brightness and edges: L1 + MSE + L1 of the gradients."""
    difference = output_BCHW - target_BCHW
    rows, columns = difference.diff(dim=2), difference.diff(dim=3)
    return difference.abs().mean() + difference.square().mean() + 0.25 * (rows.abs().mean() + columns.abs().mean())


def train_vae(state_path: Path, options: VaeOptions, *, after_step: Callable[[Run], None] = ignore) -> AutoencoderKL:
    """Train to the end and return the averaged, whitened autoencoder; resumes from `state_path`."""
    torch.manual_seed(options.seed)
    vae = build_vae()
    initialise_(vae)
    vae.to(memory_format=torch.channels_last)
    optimizer = Optimizer(vae, muon=2e-3, adam=2e-3, not_hidden=("conv_in.", "conv_out.", "quant_conv."))
    run = Run("vae", vae, optimizer, Schedule(options.steps), Average(vae.parameters(), decay=0.99))
    pool = draw_pool(options.pool, seed=options.seed)
    run_to_end(
        run,
        state_path,
        lambda step: _loss(vae, pool, options, step=step),
        save_every=options.save_every,
        after_step=after_step,
    )
    whiten_(vae, to_unit(pool[1::2][:128]))
    return vae


def _loss(vae: AutoencoderKL, pool: torch.Tensor, options: VaeOptions, *, step: int) -> torch.Tensor:
    rng = random.Random(options.seed * 1_000_003 + step)
    noise = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    is_whole = step >= options.steps * (1 - options.whole_share)
    batch, side = (max(options.batch // 4, 1), SIDE) if is_whole else (options.batch, options.crop)
    images = _crops(pool, batch=batch, side=side, rng=rng).contiguous(memory_format=torch.channels_last)
    # The posterior's deviation stays where `initialise_` put it: learned from the start, it drowns a channel for good.
    mean = vae.encode(images).latent_dist.mean
    output = vae.decode(mean + NOISE * torch.randn(mean.shape, generator=noise)).sample
    loss: torch.Tensor = reconstruction_loss(output, images) + 1e-3 * mean.square().mean()
    return loss


@torch.no_grad()
def whiten_(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold a scale and shift per channel into the 1x1 convolutions: latents times 0.18215 then have deviation one."""
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(images, 16)])
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    gain = 1.0 / (deviation * LATENT_SCALE)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    # nothing has trained the variance: make it the noise that the decoder was trained to forgive
    quant.weight[4:] = 0.0
    quant.bias[4:] = 2 * (NOISE * gain).log()
    # the decoder must first undo what the encoder did: z = z' / gain + mean
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]


def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Return the round-trip's peak signal-to-noise ratio in dB."""
    with torch.no_grad():
        output = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    return float(-10 * torch.log10(F.mse_loss(output, images) / 4))
