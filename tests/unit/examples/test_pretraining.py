"""The whole pretraining at a small size: it learns, goes on where it was stopped, and its file reloads in diffusers.

About a minute of one core: the real topology has a price even when it paints nothing yet.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from examples.base_model.commands import load_parts, train, write_model
from examples.base_model.export import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, draw, export, load, write_config
from examples.base_model.models import LATENT_SCALE, build_vae
from examples.base_model.muon import Muon, orthogonalise
from examples.base_model.sheet import sample_prompts, write_sheet
from examples.base_model.train_unet import UnetOptions, encode_pool
from examples.base_model.train_vae import VaeOptions, draw_pool, psnr, to_unit, train_vae, whiten_
from examples.base_model.training import Run, Schedule, load_state
from examples.base_model.vae_init import initialise_


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


VAE = VaeOptions(steps=4, pool=24, batch=4, crop=32)


def unet_options(steps: int) -> UnetOptions:
    return UnetOptions(steps=steps, pool=24, batch=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a little, and then a little more: the rate has not begun to fall when the first part ends."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base-model")
    for steps in (2, 5):
        train(folder, vae=VAE, unet=unet_options(steps))
    return folder


def test_training_goes_on_where_it_was_stopped(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_state(cache / "unet.pt")
    assert before is not None
    assert before["step"] == 5
    train(cache, vae=VAE, unet=unet_options(6))
    after = load_state(cache / "unet.pt")
    assert after is not None
    assert after["step"] == 6
    assert "encoding" not in capsys.readouterr().out  # neither the autoencoder nor its latents are made again


def test_a_training_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    options = VaeOptions(steps=6, pool=8, batch=2, crop=32, save_every=2)
    whole = train_vae(tmp_path / "whole.pt", options).state_dict()

    def stop(run: Run) -> None:
        if run.step == 3:  # one step after a save: it is done again
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_vae(tmp_path / "parts.pt", options, after_step=stop)
    resumed = train_vae(tmp_path / "parts.pt", options).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_file_reloads_and_draws_the_same(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert write_model(cache, path) < 1 / 255
    assert path.stat().st_size < 24e6
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        config = json.loads(file.metadata()["darkroom.config"])
    assert set(config) == {"unet", "vae", "text_encoder", "scheduler"}
    assert all(any(key.startswith(prefix) for key in keys) for prefix in (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX))
    assert UNET_PREFIX + "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight" in keys
    assert TEXT_PREFIX + "embeddings.token_embedding.weight" in keys
    parts = load_parts(cache)
    digests = {export(parts, tmp_path / name) for name in ("one.safetensors", "other.safetensors")}
    assert len(digests) == 1


def test_a_full_precision_file_holds_every_weight_exactly(cache: Path, tmp_path: Path) -> None:
    parts = load_parts(cache)
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
        assert (left.T @ after @ right.T).diagonal().tolist() == pytest.approx(values.tolist(), abs=0.8)
        off = left.T @ after @ right.T
        assert (off - torch.diag(off.diagonal())).abs().max() < 1e-4


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


def test_the_pool_ends_with_the_empty_caption(cache: Path) -> None:
    parts = load_parts(cache)
    pool = encode_pool(parts.vae, parts.tokenizer, count=3, seed=0)
    assert pool.latents.shape == (3, 4, 16, 16)
    assert pool.tokens.shape == (4, 77)
    assert pool.tokens[-1].tolist() == [49406] + [49407] * 76
