"""Pretrain the denoiser and the text encoder together on the cached latents of captioned scenes."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from examples.base_model.drawing import render, to_array
from examples.base_model.models import LATENT_SCALE, MAX_TOKENS, SIDE, build_scheduler, build_text_encoder, build_unet
from examples.base_model.muon import MuonAndAdam
from examples.base_model.scenes import sample_scene
from examples.base_model.train_vae import to_unit
from examples.base_model.training import Average, Run, Schedule, ignore, load_state, run_to_end

# Suffixes of tensors: B pictures, C channels, H rows, W columns, L tokens, D features.

MIN_SNR_GAMMA = 5.0
OUTPUT_LAYERS = (".conv2", ".to_out.0", ".ff.net.2", ".proj_out")


@dataclass(frozen=True)
class UnetOptions:
    """How the denoiser is trained."""

    steps: int
    pool: int = 6000  # captioned scenes whose latents are made once
    pool_seed: int = 1
    batch: int = 16
    caption_dropout: float = 0.1
    seed: int = 0
    save_every: int = 100


@dataclass(frozen=True)
class LatentPool:
    """Scaled latents (B, C, H, W) and token ids (B, L) of captioned scenes; the last caption is the empty one."""

    latents: torch.Tensor
    tokens: torch.Tensor


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, count: int, seed: int, side: int = SIDE) -> LatentPool:
    """Draw scenes and encode them."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    latents = []
    for start in range(0, count, 32):
        images = [to_array(render(scene, size=(side, side))) for scene in scenes[start : start + 32]]
        images_BCHW = to_unit(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))  # noqa: N806
        latents.append(vae.encode(images_BCHW).latent_dist.mode() * LATENT_SCALE)
    captions = [scene.caption for scene in scenes] + [""]
    tokens = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    return LatentPool(torch.cat(latents), tokens)


@torch.no_grad()
def initialise_unet_(unet: UNet2DConditionModel) -> None:
    """Start every branch near zero and the output at zero, so that the first thousand steps are not spent on noise."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name.endswith(OUTPUT_LAYERS):
            module.weight.mul_(0.1)
    unet.conv_out.weight.zero_()
    unet.conv_out.bias.zero_()


@torch.no_grad()
def initialise_text_(text_encoder: CLIPTextModel) -> None:
    """Give each token its own direction and freeze the table: fifty words of it are ever seen, a trigger never is."""
    for name, parameter in text_encoder.named_parameters():
        if name.endswith("token_embedding.weight"):
            parameter.normal_(0.0, 0.5)
            parameter.requires_grad_(False)
        if name.endswith("position_embedding.weight"):
            parameter.normal_(0.0, 0.1)


class Denoiser(nn.Module):
    """The text encoder and the UNet as one module: one optimizer, one average, one state."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = build_text_encoder()
        initialise_unet_(self.unet)
        initialise_text_(self.text_encoder)
        self.register_buffer("alphas", build_scheduler().alphas_cumprod, persistent=False)

    def loss(
        self,
        latents_BCHW: torch.Tensor,  # noqa: N803
        tokens_BL: torch.Tensor,  # noqa: N803
        source: torch.Generator,
    ) -> torch.Tensor:
        """Return the noise prediction's error, weighed by min-SNR (Hang et al. 2023), on stratified timesteps."""
        assert isinstance(self.alphas, torch.Tensor)
        count = len(latents_BCHW)
        share = (torch.randperm(count, generator=source) + torch.rand(count, generator=source)) / count
        timesteps = (share * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[timesteps][:, None, None, None]
        noise = torch.randn(latents_BCHW.shape, generator=source)
        noisy = alpha.sqrt() * latents_BCHW + (1 - alpha).sqrt() * noise
        context_BLD = self.text_encoder(tokens_BL).last_hidden_state  # noqa: N806
        error = (self.unet(noisy, timesteps, context_BLD).sample - noise).square().mean(dim=(1, 2, 3))
        snr = self.alphas[timesteps] / (1 - self.alphas[timesteps])
        weighed: torch.Tensor = (error * snr.clamp(max=MIN_SNR_GAMMA) / snr).mean()
        return weighed


def _start_run(options: UnetOptions) -> tuple[Run, Denoiser]:
    torch.manual_seed(options.seed)
    model = Denoiser()
    model.unet.to(memory_format=torch.channels_last)
    optimizer = MuonAndAdam(model, muon=3e-3, adam=2e-3, not_hidden=("conv_in.", "conv_out.", "embedding.weight"))
    average = Average([it for it in model.parameters() if it.requires_grad], decay=0.998)
    return Run("unet", model, optimizer, Schedule(options.steps, warmup=100), average), model


def _loss(model: Denoiser, pool: LatentPool, options: UnetOptions, *, step: int) -> torch.Tensor:
    random_numbers = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    index = torch.randint(0, len(pool.latents), (options.batch,), generator=random_numbers)
    empty = torch.rand(options.batch, generator=random_numbers) < options.caption_dropout
    tokens = torch.where(empty[:, None], pool.tokens[-1:], pool.tokens[index])
    return model.loss(pool.latents[index], tokens, random_numbers)


def train_unet(
    state_path: Path, pool: LatentPool, options: UnetOptions, *, after_step: Callable[[Run], None] = ignore
) -> Denoiser:
    """Train to the end and return the averaged model; resumes from `state_path`."""
    run, model = _start_run(options)
    run_to_end(
        run,
        state_path,
        lambda step: _loss(model, pool, options, step=step),
        save_every=options.save_every,
        after_step=after_step,
    )
    return model


def load_averaged(state_path: Path) -> Denoiser:
    """Build the averaged model from a state, whether its training has ended or not.

    Raises:
        ValueError: There is no state.
    """
    state = load_state(state_path)
    if state is None:
        raise ValueError(f"{state_path}: there is no training state; run `python -m examples.base_model train` first")
    run, model = _start_run(UnetOptions(steps=1))
    run.restore(state)
    run.average.copy_to(run.parameters)
    return model.eval()
