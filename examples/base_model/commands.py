"""What the commands of `__main__` do once torch is needed: train, export, draw a sheet."""

import argparse
import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from darkroom_trainer.families.tokenizer import load_tokenizer
from examples.base_model.export import Parts, check, draw, export, load, rounded, write_config
from examples.base_model.models import TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG, build_vae
from examples.base_model.sheet import sample_prompts, write_sheet
from examples.base_model.train_unet import LatentPool, UnetOptions, encode_pool, load_averaged, train_unet
from examples.base_model.train_vae import VaeOptions, draw_pool, psnr, to_unit, train_vae
from examples.base_model.training import load_state, save_state

SECONDS_PER_VAE_STEP, SECONDS_PER_UNET_STEP = 1.0, 1.0  # of one core, on a machine that does other work as well
SMOKE = (VaeOptions(steps=10, pool=24, batch=8), UnetOptions(steps=8, pool=24, batch=4))


@dataclass(frozen=True)
class Recipe:
    """What is trained, how, and where its states lie: their names change with all that they depend on.

    So no state is ever continued with other pictures, sizes or options than it was begun with. The denoiser's number of
    steps is left out: it may be raised.
    """

    cache: Path
    vae: VaeOptions
    unet: UnetOptions

    @cached_property
    def _vae_key(self) -> str:
        drawn = hashlib.sha256(draw_pool(8, seed=self.vae.seed).numpy().tobytes()).hexdigest()
        return _digest(drawn, _options(self.vae, without=("save_every",)), VAE_CONFIG)

    @cached_property
    def _pool_key(self) -> str:
        captions = sample_prompts(32, seed=self.unet.pool_seed)
        return _digest(self._vae_key, captions, self.unet.pool, self.unet.pool_seed)

    @property
    def vae_state(self) -> Path:
        return self.cache / f"vae-{self._vae_key}.pt"

    @property
    def vae_final(self) -> Path:
        return self.cache / f"vae-final-{self._vae_key}.pt"

    @property
    def pool(self) -> Path:
        return self.cache / f"pool-{self._pool_key}.pt"

    @property
    def unet_state(self) -> Path:
        options = _options(self.unet, without=("save_every", "steps"))
        return self.cache / f"unet-{_digest(self._pool_key, options, UNET_CONFIG, TEXT_CONFIG)}.pt"


def _options(options: VaeOptions | UnetOptions, *, without: tuple[str, ...]) -> dict[str, object]:
    return {name: value for name, value in asdict(options).items() if name not in without}


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _trained_vae(recipe: Recipe) -> AutoencoderKL:
    """Train the autoencoder once: latents made with another one would be noise to the denoiser."""
    if state := load_state(recipe.vae_final):
        vae = build_vae()
        vae.load_state_dict(state)
        return vae.eval()
    vae = train_vae(recipe.vae_state, recipe.vae)
    save_state(recipe.vae_final, vae.state_dict())
    held_out = to_unit(draw_pool(32, seed=99))
    print(f"vae: round trip {psnr(vae, held_out):.1f} dB on pictures it never saw", flush=True)
    return vae


def _pool(recipe: Recipe, vae: AutoencoderKL) -> LatentPool:
    if state := load_state(recipe.pool):
        return LatentPool(state["latents"], state["tokens"])
    print(f"unet: encoding {recipe.unet.pool} pictures", flush=True)
    pool = encode_pool(vae, load_tokenizer(), count=recipe.unet.pool, seed=recipe.unet.pool_seed)
    save_state(recipe.pool, {"latents": pool.latents, "tokens": pool.tokens})
    return pool


def train(recipe: Recipe) -> None:
    """Train all parts, or go on where the last call was stopped."""
    train_unet(recipe.unet_state, _pool(recipe, _trained_vae(recipe)), recipe.unet)


def load_parts(recipe: Recipe) -> Parts:
    """Load what has been trained so far; the averaged weights of the denoiser, whether it is done or not.

    Raises:
        ValueError: Nothing has been trained.
    """
    state = load_state(recipe.vae_final)
    if state is None:
        raise ValueError(
            f"{recipe.vae_final}: there is no trained autoencoder of this recipe; run `make base-model`, or `python -m "
            "examples.base_model train` with the same options"
        )
    vae = build_vae()
    vae.load_state_dict(state)
    model = load_averaged(recipe.unet_state)
    return Parts(model.unet, vae.eval(), model.text_encoder, load_tokenizer())


def write_model(recipe: Recipe, output: Path) -> float:
    """Export the checkpoint, reload it as a user would and return the largest difference of a picture."""
    parts = rounded(load_parts(recipe))
    digest = export(parts, output)
    with tempfile.TemporaryDirectory() as folder:
        difference = check(parts, output, write_config(Path(folder), parts.tokenizer))
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, sha256 {digest}, reloads within {difference:.4f}")
    return difference


def sheet_command(arguments: argparse.Namespace) -> None:
    """Draw a contact sheet with an exported checkpoint."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = load(arguments.model, write_config(Path(folder), load_tokenizer()))
    prompts = arguments.prompt or sample_prompts(arguments.count, seed=arguments.seed)
    started = time.monotonic()
    seeds = range(arguments.seed, arguments.seed + len(prompts))
    images = draw(pipeline, prompts, seeds=seeds, steps=arguments.steps, guidance=arguments.guidance)
    write_sheet(images, arguments.output, columns=8, captions=prompts)
    print(f"{arguments.output}: {len(prompts)} pictures, {(time.monotonic() - started) / len(prompts):.1f} s each")


def export_command(arguments: argparse.Namespace) -> None:
    """Export what has been trained so far."""
    torch.set_num_threads(1)
    write_model(_recipe(arguments), arguments.output)


def train_command(arguments: argparse.Namespace) -> None:
    """Train the steps that were asked for."""
    torch.set_num_threads(1)  # two threads on a busy machine were seen to be slower than one
    recipe = _recipe(arguments)
    seconds = recipe.vae.steps * SECONDS_PER_VAE_STEP + recipe.unet.steps * SECONDS_PER_UNET_STEP
    print(f"training takes about {seconds / 60:.0f} minutes of one core from its start; stop and start it at will")
    train(recipe)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    vae, unet = SMOKE if arguments.smoke else (VaeOptions(arguments.vae_steps), UnetOptions(arguments.unet_steps))
    return Recipe(arguments.cache, vae, unet)
