"""The whole pretraining at a small size: it learns, goes on where it was stopped, and its file reloads in diffusers.

About a minute of one core: the real topology has a price even when it paints nothing yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from examples.base_model.__main__ import main
from examples.base_model.commands import SMOKE, Recipe, load_parts, train, write_model
from examples.base_model.export import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, draw, export, load, write_config
from examples.base_model.models import LATENT_SCALE, build_vae
from examples.base_model.muon import Muon, orthogonalise
from examples.base_model.sheet import sample_prompts, write_sheet
from examples.base_model.train_unet import LatentPool, UnetOptions, encode_pool, train_unet
from examples.base_model.train_vae import VaeOptions, draw_pool, psnr, to_unit, train_vae, whiten_
from examples.base_model.training import Run, Schedule, ignore, load_state
from examples.base_model.vae_init import initialise_


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Run the smoke version of the whole pretraining, as `python -m examples.base_model train --smoke` does."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base-model")
    assert main(["train", "--smoke", "--cache", str(folder)]) == 0
    return Recipe(folder, *SMOKE)


def test_training_is_given_more_steps_and_does_nothing_twice(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_state(recipe.unet_state)
    assert before is not None
    assert before["step"] == recipe.unet.steps
    train(replace(recipe, unet=replace(recipe.unet, steps=recipe.unet.steps + 1)))
    after = load_state(recipe.unet_state)
    assert after is not None
    assert after["step"] == recipe.unet.steps + 1
    assert "encoding" not in capsys.readouterr().out  # neither the autoencoder nor its latents are made again


def test_states_of_another_recipe_are_left_alone(tmp_path: Path) -> None:
    one = Recipe(tmp_path, *SMOKE)
    others = [
        replace(one, vae=replace(one.vae, steps=11)),
        replace(one, vae=replace(one.vae, seed=1)),
        replace(one, unet=replace(one.unet, pool=25)),
        replace(one, unet=replace(one.unet, pool_seed=2)),
        replace(one, unet=replace(one.unet, batch=5)),
    ]
    assert len({it.unet_state for it in (one, *others)}) == len(others) + 1
    assert len({it.vae_final for it in (one, *others)}) == 3
    assert len({it.pool for it in (one, *others)}) == 5
    saved_often = replace(one, vae=replace(one.vae, save_every=1), unet=replace(one.unet, save_every=1))
    assert saved_often.unet_state == one.unet_state
    with pytest.raises(ValueError, match=r"there is no trained autoencoder of this recipe; run `make base-model`"):
        load_parts(one)


def stop_at(step: int) -> Callable[[Run], None]:
    def stop(run: Run) -> None:
        if run.step == step:
            raise KeyboardInterrupt

    return stop


def train_a_vae(path: Path, after_step: Callable[[Run], None] = ignore) -> dict[str, torch.Tensor]:
    options = VaeOptions(steps=6, pool=8, batch=2, crop=32, save_every=2)
    return train_vae(path, options, after_step=after_step).state_dict()


def train_a_unet(path: Path, after_step: Callable[[Run], None] = ignore) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 49_000, (5, 77), generator=numbers)
    pool = LatentPool(torch.randn(4, 4, 8, 8, generator=numbers), tokens)
    options = UnetOptions(steps=6, batch=2, save_every=2, caption_dropout=0.5)
    return train_unet(path, pool, options, after_step=after_step).state_dict()


@pytest.mark.parametrize("train_one", [train_a_vae, train_a_unet])
def test_a_training_that_was_stopped_ends_with_the_same_weights(
    tmp_path: Path, train_one: Callable[..., dict[str, torch.Tensor]]
) -> None:
    whole = train_one(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train_one(tmp_path / "parts.pt", stop_at(3))  # a step after a save: it is done again
    resumed = train_one(tmp_path / "parts.pt")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_file_reloads_and_draws_the_same(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert write_model(recipe, path) < 1 / 255
    assert path.stat().st_size < 24e6
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        config = json.loads(file.metadata()["darkroom.config"])
    assert set(config) == {"unet", "vae", "text_encoder", "scheduler"}
    assert all(any(key.startswith(prefix) for key in keys) for prefix in (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX))
    assert UNET_PREFIX + "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight" in keys
    assert TEXT_PREFIX + "embeddings.token_embedding.weight" in keys
    parts = load_parts(recipe)
    digests = {export(parts, tmp_path / name) for name in ("one.safetensors", "other.safetensors")}
    assert len(digests) == 1


def test_a_full_precision_file_holds_every_weight_exactly(recipe: Recipe, tmp_path: Path) -> None:
    parts = load_parts(recipe)
    export(parts, tmp_path / "full.safetensors", dtype=torch.float32)
    loaded = load(tmp_path / "full.safetensors", write_config(tmp_path / "config", parts.tokenizer))
    for name in ("unet", "vae", "text_encoder"):
        expected, found = getattr(parts, name).state_dict(), getattr(loaded, name).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    images = draw(loaded, sample_prompts(2, seed=0), seeds=[0, 1], steps=2)
    write_sheet(images, tmp_path / "sheet.png", columns=2, captions=sample_prompts(2, seed=0))
    assert (tmp_path / "sheet.png").stat().st_size > 0
    assert images.shape == (2, 128, 128, 3)


def test_the_autoencoder_starts_as_a_mean_and_latents_are_white() -> None:
    torch.manual_seed(0)
    vae = build_vae()
    initialise_(vae)
    images = to_unit(draw_pool(24, seed=5, side=64))
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
    means = torch.nn.functional.avg_pool2d(images, 8)
    for channel in range(3):
        pair = np.stack([means[:, channel].flatten().numpy(), latents[:, channel].flatten().numpy()])
        assert np.corrcoef(pair)[0, 1] > 0.98
    before = psnr(vae, images)
    whiten_(vae, images)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    assert psnr(vae, images) == pytest.approx(before, abs=0.01)
    deviation = posterior.mode().std(dim=(0, 2, 3)) * LATENT_SCALE
    assert deviation.tolist() == pytest.approx([1.0] * 4, abs=0.02)
    assert float((posterior.mode().mean(dim=(0, 2, 3)) * LATENT_SCALE).abs().max()) < 0.02
    assert (posterior.std * LATENT_SCALE)[:, :3].max() < 0.15  # a trainer that samples the posterior sees the picture


def test_a_schedule_warms_up_holds_and_falls() -> None:
    schedule = Schedule(steps=100, warmup=10, fall=0.4)
    assert [schedule.factor(step) for step in (0, 4, 9, 30, 60)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert schedule.factor(70) == pytest.approx(1 - 0.25**0.5)
    assert schedule.factor(99) == pytest.approx(1 - (39 / 40) ** 0.5)
    longer = Schedule(steps=1000, warmup=10, fall=0.4)
    assert all(schedule.factor(step) == longer.factor(step) for step in range(61))


@pytest.mark.parametrize("shape", [(3, 8, 40), (2, 40, 8), (1, 16, 16)])
def test_orthogonalising_leaves_the_directions_and_evens_their_lengths(shape: tuple[int, ...]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(given)
    for before, after in zip(given, found, strict=True):
        left, _, right = torch.linalg.svd(before, full_matrices=False)
        values = torch.linalg.svdvals(after)
        assert values.min() > 0.5
        assert values.max() < 1.3
        inner = left.T @ after @ right.T
        assert inner.diagonal().min() > 0.5
        assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-4


def test_muon_moves_as_torchs_own_does() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(12, 20), [torch.randn(12, 20) for _ in range(3)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"momentum": 0.95, "weight_decay": 0.1}
    peers = (
        (ours, Muon([ours], lr=0.1, **options)),
        (theirs, torch.optim.Muon([theirs], lr=0.1, adjust_lr_fn="match_rms_adamw", **options)),
    )
    for gradient in gradients:
        for parameter, optimizer in peers:
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # torch's iterates in bfloat16


def test_the_pool_ends_with_the_empty_caption(recipe: Recipe) -> None:
    parts = load_parts(recipe)
    pool = encode_pool(parts.vae, parts.tokenizer, count=3, seed=0)
    assert pool.latents.shape == (3, 4, 16, 16)
    assert pool.tokens.shape == (4, 77)
    assert pool.tokens[-1].tolist() == [49406] + [49407] * 76
