"""What the commands of `__main__` do once torch is needed: train, export, draw a sheet."""

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from darkroom_trainer.families.tokenizer import load_tokenizer
from examples.base_model.export import Parts, check, draw, export, load, rounded, write_config
from examples.base_model.models import build_vae
from examples.base_model.sheet import sample_prompts, write_sheet
from examples.base_model.train_unet import LatentPool, UnetOptions, encode_pool, load_averaged, train_unet
from examples.base_model.train_vae import VaeOptions, draw_pool, psnr, to_unit, train_vae
from examples.base_model.training import load_state, save_state

SECONDS_PER_VAE_STEP, SECONDS_PER_UNET_STEP = 1.0, 0.75  # on an idle core


def _trained_vae(cache: Path, options: VaeOptions) -> AutoencoderKL:
    """Train the autoencoder once: latents made with another one would be noise to the denoiser."""
    final = cache / "vae-final.pt"
    if state := load_state(final):
        vae = build_vae()
        vae.load_state_dict(state)
        return vae.eval()
    vae = train_vae(cache / "vae.pt", options)
    save_state(final, vae.state_dict())
    held_out = to_unit(draw_pool(32, seed=99))
    print(f"vae: round trip {psnr(vae, held_out):.1f} dB on pictures it never saw", flush=True)
    return vae


def _pool(cache: Path, vae: AutoencoderKL, options: UnetOptions) -> LatentPool:
    path = cache / f"pool-{options.pool_seed}-{options.pool}.pt"
    if state := load_state(path):
        return LatentPool(state["latents"], state["tokens"])
    print(f"unet: encoding {options.pool} pictures", flush=True)
    pool = encode_pool(vae, load_tokenizer(), count=options.pool, seed=options.pool_seed)
    save_state(path, {"latents": pool.latents, "tokens": pool.tokens})
    return pool


def train(cache: Path, *, vae: VaeOptions, unet: UnetOptions) -> None:
    """Train all parts, or go on where the last call was stopped."""
    train_unet(cache / "unet.pt", _pool(cache, _trained_vae(cache, vae), unet), unet)


def load_parts(cache: Path) -> Parts:
    """Load what has been trained so far; the averaged weights of the denoiser, whether it is done or not."""
    state = load_state(cache / "vae-final.pt")
    if state is None:
        raise ValueError(f"{cache}: there is no trained autoencoder; run `python -m examples.base_model train` first")
    vae = build_vae()
    vae.load_state_dict(state)
    model = load_averaged(cache / "unet.pt")
    return Parts(model.unet, vae.eval(), model.text_encoder, load_tokenizer())


def write_model(cache: Path, output: Path) -> float:
    """Export the checkpoint, reload it as a user would and return the largest difference of a picture."""
    parts = rounded(load_parts(cache))
    digest = export(parts, output)
    config = write_config(cache / "config", parts.tokenizer)
    difference = check(parts, output, config)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, sha256 {digest}, reloads within {difference:.4f}")
    return difference


def sheet_command(arguments: argparse.Namespace) -> None:
    """Draw a contact sheet with an exported checkpoint."""
    torch.set_num_threads(1)
    config = write_config(arguments.cache / "config", load_tokenizer())
    pipeline = load(arguments.model, config)
    prompts = arguments.prompt or sample_prompts(arguments.count, seed=arguments.seed)
    started = time.monotonic()
    seeds = range(arguments.seed, arguments.seed + len(prompts))
    images = draw(pipeline, prompts, seeds=seeds, steps=arguments.steps, guidance=arguments.guidance)
    write_sheet(images, arguments.output, columns=8, captions=prompts)
    print(f"{arguments.output}: {len(prompts)} pictures, {(time.monotonic() - started) / len(prompts):.1f} s each")


def export_command(arguments: argparse.Namespace) -> None:
    """Export what has been trained so far."""
    torch.set_num_threads(1)
    write_model(arguments.cache, arguments.output)


def train_command(arguments: argparse.Namespace) -> None:
    """Train the steps that were asked for."""
    torch.set_num_threads(1)  # two threads on a busy machine were seen to be slower than one
    vae, unet = VaeOptions(arguments.vae_steps), UnetOptions(arguments.unet_steps)
    if arguments.smoke:
        vae, unet = VaeOptions(25, pool=64), UnetOptions(40, pool=64, batch=8)
    seconds = vae.steps * SECONDS_PER_VAE_STEP + unet.steps * SECONDS_PER_UNET_STEP
    print(f"training takes about {seconds / 60:.0f} minutes of one core; stop and start it at will")
    train(arguments.cache, vae=vae, unet=unet)
