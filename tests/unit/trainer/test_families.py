"""Each family: named as its files are, painted as diffusers paints, pickled or not, with v-prediction and zero SNR."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file

from darkroom_api.objectives import Objective
from darkroom_trainer import objectives, sampling
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import FAMILIES, SCHEDULER, SDXL, text_encoder_config, unet_config
from darkroom_trainer.families.loading import load_path
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.safetensors_file import encode
from darkroom_trainer.weights_file import open_weights
from tests.builders.models import CONFIGS, tiny_tensors, write_tiny
from tests.e2e.painting import pipeline
from tests.unit.trainer.sessions import Maker

Load = Callable[..., StableDiffusion]
Files = Callable[[str], Path]
CPU = torch.device("cpu")
PICTURE = sampling.Picture(
    prompt="sks robot", negative_prompt="blurred", seed=7, width=96, height=64, steps=4, guidance_scale=5.0
)


def their_picture(pipe: Any) -> np.ndarray:
    picture = pipe(
        PICTURE.prompt,
        negative_prompt=PICTURE.negative_prompt,
        num_inference_steps=PICTURE.steps,
        guidance_scale=PICTURE.guidance_scale,
        width=PICTURE.width,
        height=PICTURE.height,
        generator=torch.Generator().manual_seed(PICTURE.seed),
    ).images[0]
    return np.asarray(picture, dtype=np.int16)


def our_picture(model: StableDiffusion) -> np.ndarray:
    return np.asarray(sampling.paint(model, PICTURE), dtype=np.int16)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_diffusers_importers(load_model: Load, base_files: Files, family: str) -> None:
    """Every weight lies in the file where diffusers looks for it; the same tensor, not an equal one."""
    model, tensors = load_model(family=family), load_file(base_files(family))
    theirs = {
        "unet": convert_ldm_unet_checkpoint(dict(tensors), model.unet.config),
        "vae": convert_ldm_vae_checkpoint(dict(tensors), model.vae.config),
    }
    for encoder in model.text_encoders:
        if encoder.file.is_open_clip:
            found = convert_open_clip_checkpoint(encoder.model, dict(tensors), prefix=encoder.file.prefix)
        else:
            found = convert_ldm_clip_checkpoint(dict(tensors))
        theirs[encoder.file.part] = {name.removeprefix("text_model."): it for name, it in found.items()}
    for part, links in model.links.items():
        for link in links:
            for name, weight in zip(link.names, link.unpack(tensors[link.key]), strict=True):
                assert torch.equal(weight.flatten(), theirs[part][name.removeprefix("text_model.")].flatten()), name
        assert {name for link in links for name in link.names} == set(dict(_module(model, part).named_parameters()))


def _module(model: StableDiffusion, part: str) -> torch.nn.Module:
    return model.vae if part == "vae" else model.parts[part]


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_undoes_unpacking(load_model: Load, base_files: Files, family: str) -> None:
    tensors = load_file(base_files(family))
    for links in load_model(family=family).links.values():
        assert all(torch.equal(it.pack(it.unpack(tensors[it.key])), tensors[it.key]) for it in links)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_paints_what_diffusers_paints(load_model: Load, base_files: Files, family: str) -> None:
    assert np.abs(our_picture(load_model(family=family)) - their_picture(pipeline(base_files(family)))).max() <= 1


@pytest.mark.parametrize(("family", "zero"), [("SD2", False), ("SDXL", False), ("SD15", True), ("SDXL", True)])
def test_v_prediction_paints_what_diffusers_paints(base_files: Files, *, family: str, zero: bool) -> None:
    objective = Objective(prediction_type="VPrediction", zero_terminal_snr=zero)
    ours = load_path(base_files(family), dtype=torch.float32, device=CPU, objective=objective)
    pipe = pipeline(base_files(family))
    plain = pipe.scheduler
    told = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero else {}
    try:
        pipe.scheduler = DDIMScheduler.from_config(plain.config, prediction_type="v_prediction", **told)
        assert np.abs(our_picture(ours) - their_picture(pipe)).max() <= 1
    finally:
        pipe.scheduler = plain


def test_v_is_what_diffusers_calls_velocity() -> None:
    scheduler = DDIMScheduler(**SCHEDULER, rescale_betas_zero_snr=True)
    alphas, generator = scheduler.alphas_cumprod, torch.Generator().manual_seed(1)
    clean, noise = torch.randn(4, 4, 8, 8, generator=generator), torch.randn(4, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([0, 300, 998, 999])
    found = objectives.diffuse(clean, noise, timesteps, alphas_T=alphas, velocity=True)
    torch.testing.assert_close(found.target_BCHW, scheduler.get_velocity(clean, noise, timesteps))
    torch.testing.assert_close(found.latents_BCHW, scheduler.add_noise(clean, noise, timesteps))
    assert torch.equal(found.latents_BCHW[3], noise[3])  # at the end there is nothing but noise
    for objective in (Objective(min_snr_gamma=5), Objective(debiased=True)):
        assert objectives.weights(timesteps, alphas, objective, velocity=True).isfinite().all()


def test_weights_of_v_are_those_of_noise_by_its_own_ratio() -> None:
    """The error of v is that of the noise times (SNR + 1) / SNR, so equal emphasis divides by that."""
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
    timesteps, objective = torch.tensor([1, 250, 600, 999]), Objective(min_snr_gamma=5)
    snr = alphas[timesteps] / (1 - alphas[timesteps])
    of_noise = objectives.weights(timesteps, alphas, objective)
    of_v = objectives.weights(timesteps, alphas, objective, velocity=True)
    torch.testing.assert_close(of_v * (snr + 1) / snr, of_noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_v_prediction_with_zero_snr_trains(make: Maker, family: str) -> None:
    session = make(family=family, objective={"predictionType": "VPrediction", "zeroTerminalSnr": True})
    session.model.scheduler.register_to_config(prediction_type="v_prediction")
    assert all(np.isfinite(session.step().loss) for _ in range(3))


def test_marks_in_the_file_are_heeded_unless_the_spec_says_otherwise(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "xl.safetensors", "SDXL", v_pred=torch.empty(0), ztsnr=torch.empty(0))
    marked = load_path(path, dtype=torch.float32, device=CPU)
    assert marked.nature.predicts_velocity
    assert marked.nature.zero_terminal_snr
    spoken = Objective(prediction_type="Epsilon", zero_terminal_snr=False)
    told = load_path(path, dtype=torch.float32, device=CPU, objective=spoken)
    assert not told.nature.predicts_velocity
    assert not told.nature.zero_terminal_snr


def test_sd2_must_say_what_it_predicts(tmp_path: Path) -> None:
    """Its models of 512 and of 768 pixels have the same tensors; ours say it in modelspec's words."""
    bare, told = tmp_path / "bare.safetensors", tmp_path / "told.safetensors"
    config = {part: it for part, it in CONFIGS["SD2"].items() if part != "scheduler"}
    for path, about in ((bare, {}), (told, {"modelspec.prediction_type": "v"})):
        path.write_bytes(encode(tiny_tensors(family="SD2"), {"darkroom.config": json.dumps(config), **about}))
    with pytest.raises(RunError, match=r"predictionType: bare.safetensors does not say what it predicts; allowed for"):
        load_path(bare, dtype=torch.float32, device=CPU)
    assert load_path(told, dtype=torch.float32, device=CPU).nature.predicts_velocity
    spoken = Objective(prediction_type="Epsilon")
    assert not load_path(bare, dtype=torch.float32, device=CPU, objective=spoken).nature.predicts_velocity


PUBLISHED: dict[str, dict[str, Any]] = {
    "SD15": {"block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8, "cross_attention_dim": 768},
    "SD2": {
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "SDXL": {
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
}
"""Of the `unet/config.json` in the repositories of Stable Diffusion 1.5, 2.1 and XL 1.0."""


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_of_the_real_sizes_follow_from_their_shapes(family: str) -> None:
    known = FAMILIES[family]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({**_complete(family), **PUBLISHED[family]})
    from darkroom_trainer.families.naming import unet_links

    shapes = {name: tuple(it.shape) for name, it in unet.named_parameters()}
    links = unet_links(shapes, "model.diffusion_model.", layers_per_block=2)
    in_file = {link.key: shapes[link.names[0]] for link in links}
    if family == "SDXL":
        in_file[f"{SDXL.text_encoders[1].prefix}text_projection"] = (1280, 1280)
    found = unet_config(known, in_file)
    assert {key: found[key] for key in PUBLISHED[family]} == PUBLISHED[family]
    with torch.device("meta"):
        again = UNet2DConditionModel.from_config(found)
    assert {name: tuple(it.shape) for name, it in again.named_parameters()} == shapes


def _complete(family: str) -> dict[str, Any]:
    if family == "SDXL":
        return {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
    return {
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }


def test_text_encoders_of_the_real_sizes() -> None:
    """ViT-H of SD 2.x has 24 layers in its files, of which 23 are used; bigG of SDXL has 32 and a projection."""
    rows = [("SD2", 0, 1024, 24, 23, 16), ("SDXL", 1, 1280, 32, 32, 20)]
    for family, index, width, layers, used, heads in rows:
        encoder = FAMILIES[family].text_encoders[index]
        shapes = {f"{encoder.prefix}token_embedding.weight": (49408, width)}
        shapes |= {f"{encoder.prefix}positional_embedding": (77, width)}
        shapes |= {
            f"{encoder.prefix}transformer.resblocks.{n}.mlp.c_fc.weight": (4 * width, width) for n in range(layers)
        }
        shapes |= {f"{encoder.prefix}text_projection": (width, width)}
        config = text_encoder_config(encoder, shapes)
        assert (config["num_hidden_layers"], config["num_attention_heads"]) == (used, heads)
        assert (config["hidden_act"], config["pad_token_id"], config["eos_token_id"]) == ("gelu", 0, 49407)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_checkpoint_gives_the_same_model(tmp_path: Path, load_model: Load, *, zipped: bool) -> None:
    path = tmp_path / "m.ckpt"
    tensors = {**tiny_tensors(), "num_updates": torch.tensor(3)}
    torch.save({"state_dict": tensors, "epoch": 4}, path, _use_new_zipfile_serialization=zipped)
    file = open_weights(path)
    assert file.header.shapes["num_updates"] == ()
    assert file.header.dtypes["first_stage_model.decoder.conv_in.bias"] == "F16"
    expected = load_model().vae.decoder.conv_in.bias
    found = dict(file.tensors(["first_stage_model.decoder.conv_in.bias"]))
    assert torch.equal(found["first_stage_model.decoder.conv_in.bias"].float(), expected)


def test_what_a_checkpoint_of_lightning_mentions_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stability's first files name a class of the framework that trained them, as the key of its callbacks."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            patched.setitem(sys.modules, name, module)
        torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": {kind: {"best": 1}}}, tmp_path / "m.ckpt")
    assert torch.equal(dict(open_weights(tmp_path / "m.ckpt").tensors())["a"], torch.ones(2))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    path, trace = tmp_path / "m.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Evil(trace)}, path)
    with pytest.raises(
        RunError, match=r"m.ckpt is a pickle that holds more than tensors, which could run code"
    ) as told:
        open_weights(path)
    assert "safetensors" in told.value.advice
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\x03\x04rest of a zip", "cannot be read"),
        (b"\x80\x02}q\x00rest of a pickle", "cannot be read|more than tensors"),
        (pickle.dumps([1, 2]), "holds a list|cannot be read|more than tensors"),
    ],
)
def test_damaged_pickles(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        open_weights(path)
    assert re.search(expected, caught.value.message), caught.value.message


def test_an_autoencoder_is_built_as_its_file_says(load_model: Load) -> None:
    assert isinstance(load_model(family="SDXL").vae, AutoencoderKL)
    assert load_model(family="SDXL").vae.config.scaling_factor == 0.13025
    assert load_model(family="SD2").vae.config.scaling_factor == 0.18215
