"""Pretrain the autoencoder on drawn pictures: crops first, a quarter of the cost for the same edges."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name in all of torch's literature
from diffusers import AutoencoderKL

from examples.base_model.drawing import render, render_oddity, to_array
from examples.base_model.models import LATENT_SCALE, SIDE, build_vae
from examples.base_model.scenes import sample_scene
from examples.base_model.training import Average, Budget, Cosine, load_state, save_state, say
from examples.base_model.vae_init import initialise_

# Suffixes of tensors: B pictures, C channels, H rows, W columns.

NOISE = 0.04  # against latents of deviation near one: what the decoder must forgive a denoiser


@dataclass(frozen=True)
class VaeOptions:
    """How the autoencoder is trained; `seconds` are of work, not of the day."""

    seconds: float
    pool: int = 6000  # pictures drawn once; at 128 px each takes 48 KiB
    batch: int = 16
    crop: int = 64
    whole_share: float = 0.25  # the last share of the budget works on whole pictures
    seed: int = 0
    report_every: int = 50


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


def train_vae(state_path: Path, options: VaeOptions) -> AutoencoderKL:
    """Train until the budget is spent and return the averaged, whitened autoencoder; resumes from `state_path`."""
    torch.manual_seed(options.seed)
    vae = build_vae()
    initialise_(vae)
    vae.to(memory_format=torch.channels_last)
    parameters = list(vae.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.99))
    average = Average(parameters, decay=0.995)
    budget, step, schedule = Budget(options.seconds), 0, Cosine(2e-3, warmup=60, floor=0.02)
    if state := load_state(state_path):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights = state["average"]
        budget.spent, step = state["spent"], state["step"]
    pool = draw_pool(options.pool, seed=options.seed)
    losses: list[float] = []
    while budget.tick() < 1.0:
        rng = random.Random(options.seed * 1_000_003 + step)
        torch.manual_seed(options.seed * 1_000_003 + step)
        whole = budget.share > 1 - options.whole_share
        shape = (options.batch // 4, SIDE) if whole else (options.batch, options.crop)
        images = _crops(pool, batch=shape[0], side=shape[1], rng=rng).contiguous(memory_format=torch.channels_last)
        optimizer.param_groups[0]["lr"] = schedule.at(step, share=budget.share)
        losses.append(_step(vae, images, optimizer))
        average.update(parameters, step=step)
        step += 1
        if step % options.report_every == 0:
            say("vae", step, budget=budget, losses=losses[-options.report_every :])
        if step % 200 == 0:
            save_state(state_path, _state(vae, optimizer, average, spent=budget.spent, step=step))
    save_state(state_path, _state(vae, optimizer, average, spent=budget.spent, step=step))
    average.copy_to(parameters)
    whiten_(vae, to_unit(pool[1::2][:128]))
    return vae.eval()


def _state(
    vae: AutoencoderKL, optimizer: torch.optim.Optimizer, average: Average, *, spent: float, step: int
) -> dict[str, object]:
    return {
        "vae": vae.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.weights,
        "spent": spent,
        "step": step,
    }


def _step(vae: AutoencoderKL, images: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    # The posterior's deviation stays where `initialise_` put it: learned from the start, it drowns a channel for good.
    posterior = vae.encode(images).latent_dist
    output = vae.decode(posterior.mean + NOISE * torch.randn_like(posterior.mean)).sample
    loss = reconstruction_loss(output, images) + 1e-3 * posterior.mean.square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


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
