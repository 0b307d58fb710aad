"""Samples: every sampler and the second pass paint what diffusers paints, and an adapter counts for what is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from PIL import Image

from darkroom_api.samples import Hires, Samples
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.opening import sample_strength
from darkroom_trainer.samplers import SAMPLERS
from darkroom_trainer.sampling import Picture, paint, wanted_pictures
from tests.e2e.painting import pipeline
from tests.unit.trainer.sessions import Maker

Load = Callable[..., StableDiffusion]
Files = Callable[[str], Path]
PICTURE = Picture(
    prompt="sks robot", negative_prompt="blurred", seed=7, width=96, height=64, steps=5, guidance_scale=5.0
)


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture, dtype=np.int16)


def asked() -> dict[str, Any]:
    return {
        "prompt": PICTURE.prompt,
        "negative_prompt": PICTURE.negative_prompt,
        "num_inference_steps": PICTURE.steps,
        "guidance_scale": PICTURE.guidance_scale,
        "generator": torch.Generator().manual_seed(PICTURE.seed),
    }


def theirs(base: Path, sampler: str, **more: Any) -> np.ndarray:
    pipe = pipeline(base)
    plain = pipe.scheduler
    try:
        pipe.scheduler = SAMPLERS[sampler](plain.config)
        return pixels(pipe(**asked(), width=PICTURE.width, height=PICTURE.height, **more).images[0])
    finally:
        pipe.scheduler = plain


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_paints_what_diffusers_paints(load_model: Load, base_file: Path, sampler: str) -> None:
    ours = pixels(paint(load_model(), replace(PICTURE, sampler=sampler)))
    assert np.abs(ours - theirs(base_file, sampler)).max() <= 1


def test_samplers_differ_and_sdxl_has_them_too(load_model: Load, base_files: Files) -> None:
    model = load_model(family="SDXL")
    ours = {name: pixels(paint(model, replace(PICTURE, sampler=name))) for name in ("DDIM", "EulerAncestral")}
    assert np.abs(ours["DDIM"] - ours["EulerAncestral"]).max() > 1
    assert np.abs(ours["EulerAncestral"] - theirs(base_files("SDXL"), "EulerAncestral")).max() <= 1


def test_the_api_and_the_trainer_know_the_same_samplers() -> None:
    assert set(get_args(Samples.model_fields["sampler"].annotation)) == set(SAMPLERS)


@pytest.mark.parametrize(("family", "sampler"), [("SD15", "DDIM"), ("SD15", "DPMPlusPlus2M"), ("SDXL", "Euler")])
def test_the_second_pass_is_diffusers_img2img(load_model: Load, base_files: Files, family: str, sampler: str) -> None:
    model, hires = load_model(family=family), Hires(scale=1.5, denoise=0.6)
    first = paint(model, replace(PICTURE, sampler=sampler))
    ours = paint(model, replace(PICTURE, sampler=sampler, hires=hires))
    assert ours.size == (144, 96)
    pipe = pipeline(base_files(family))
    kind = StableDiffusionXLImg2ImgPipeline if family == "SDXL" else StableDiffusionImg2ImgPipeline
    second = kind.from_pipe(pipe, scheduler=SAMPLERS[sampler](pipe.scheduler.config))
    second.set_progress_bar_config(disable=True)
    large = first.resize((144, 96), Image.Resampling.LANCZOS)
    expected = second(**asked(), image=large, strength=0.6).images[0]
    assert np.abs(pixels(ours) - pixels(expected)).max() <= 1


def test_every_wish_of_the_spec_reaches_the_picture() -> None:
    spec = Samples(prompts=["a"], sampler="Euler", hires=Hires(), width=64, steps=3, guidance_scale=2)
    ((_, picture),) = wanted_pictures(spec, resolution=128)
    assert (picture.sampler, picture.hires, picture.width, picture.height) == ("Euler", Hires(), 64, 128)
    assert (picture.steps, picture.guidance_scale) == (3, 2)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_lora_counts_for_what_is_asked(make: Maker, base_file: Path, tmp_path: Path, scale: float) -> None:
    session = make(
        fields={"samples": {"loraScale": scale}},
        optimizer={"type": "AdamW", "learningRate": 5e-2},
        schedule={"type": "Constant"},
    )
    before = pixels(paint(session.model, PICTURE))
    for _ in range(3):
        session.step()
    with session.trainee.rounded(torch.float32), sample_strength(session.spec, session.trainee):
        ours = pixels(paint(session.model, PICTURE))
    session.trainee.draft(torch.float32)(tmp_path / "lora.safetensors", {})
    pipe = pipeline(base_file)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    pipe.set_adapters(pipe.get_active_adapters(), adapter_weights=[scale])
    expected = pixels(pipe(**asked(), width=PICTURE.width, height=PICTURE.height).images[0])
    pipe.unload_lora_weights()
    assert np.abs(ours - expected).max() <= 1
    assert (np.abs(ours - before).max() > 1) == (scale > 0)
    assert all(layer.strength == 1 for layer in session.trainee.layers)  # type: ignore[attr-defined]
