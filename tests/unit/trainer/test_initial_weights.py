"""Going on from a trained file: exactly what it paints, in whoever's words, or a refusal that says what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from darkroom_api.failures import FailureReason
from darkroom_api.networks import DoRA, LoHa, LoKr, LoRA, Network
from darkroom_trainer import sampling
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.metadata import BaseModelFile
from darkroom_trainer.networks.adapter import Adapter, inject
from darkroom_trainer.preparing import Inputs
from darkroom_trainer.weights_file import WeightsFile, open_weights
from tests.builders.models import write_tiny_sd15
from tests.builders.networks import trained
from tests.unit.trainer.sessions import Maker, same, weights

Load = Callable[..., StableDiffusion]
FIELD = "spec.network.initialWeights.uri"
NETWORKS: dict[str, Network] = {
    "LoCon": LoRA(rank=4, alpha=0.3, conv_rank=2, conv_alpha=1.5),
    "LoHa": LoHa(rank=3, alpha=2, conv_rank=2, conv_alpha=1.5),
    "LoKr": LoKr(rank=2, alpha=1, conv_rank=3, conv_alpha=1.5, factor=4, decompose_both=True),
    "LoKr of whole matrices": LoKr(alpha=4, full_matrix=True),
    "DoRA": DoRA(rank=4, alpha=2, conv_rank=2, conv_alpha=1.5),
}
PICTURE = sampling.Picture(
    prompt="sks robot", negative_prompt="", seed=7, width=64, height=64, steps=2, guidance_scale=1.0
)


def painted(model: StableDiffusion) -> np.ndarray:
    return np.asarray(sampling.paint(model, PICTURE), dtype=np.int16)


def written(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> WeightsFile:
    save_file({name: it.contiguous() for name, it in tensors.items()}, path, metadata=metadata)
    return open_weights(path, field=FIELD)


def begun(model: StableDiffusion, network: Network, initial: WeightsFile, *, text: bool = True) -> Adapter:
    return inject(network, model, seed=9, train_text_encoder=text, initial=initial)


@pytest.mark.parametrize(
    ("name", "family"), [*((name, "SD15") for name in NETWORKS), ("LoCon", "SD2"), ("LoCon", "SDXL"), ("DoRA", "SDXL")]
)
def test_a_file_of_ours_comes_back_whole(load_model: Load, tmp_path: Path, name: str, family: str) -> None:
    model, network = load_model(family=family), NETWORKS[name]
    adapter = trained(model, network, size=0.1)
    tensors = adapter.file_tensors(torch.float16)
    with adapter.rounded(torch.float16):
        before = painted(model)
    second = load_model(family=family)
    again = begun(second, network, written(tmp_path / "lora.safetensors", tensors))
    assert np.array_equal(painted(second), before)
    back = again.file_tensors(torch.float16)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(back[key], tensor, rtol=2e-7 if key.endswith("dora_scale") else 0, atol=0)


@pytest.mark.parametrize(
    ("family", "renamed"),
    [
        ("SD15", lambda name: name.replace("lora_te_text_model_", "lora_te1_text_model_")),
        ("SD15", lambda name: name.replace("lora_te_text_model_", "lora_te_")),
        ("SDXL", None),
    ],
    ids=["te1", "no text_model", "SDXL by diffusers' names"],
)
def test_other_spellings_of_layers_are_understood(
    load_model: Load, tmp_path: Path, family: str, renamed: Callable[[str], str] | None
) -> None:
    adapter = trained(load_model(family=family), NETWORKS["LoCon"])
    others = {it.place.name: it.place.names[1] for it in adapter.layers if it.place.part == UNET_PART}

    def other(key: str) -> str:
        name, _, suffix = key.partition(".")
        return f"{renamed(name) if renamed else others.get(name, name)}.{suffix}"

    tensors = adapter.file_tensors(torch.float32)
    assert {other(key) for key in tensors} != tensors.keys()
    initial = written(tmp_path / "lora.safetensors", {other(key): it for key, it in tensors.items()})
    again = begun(load_model(family=family), NETWORKS["LoCon"], initial)
    assert all(torch.equal(it, tensors[key]) for key, it in again.file_tensors(torch.float32).items())


@pytest.mark.parametrize("ours", [True, False], ids=["PEFT's names", "diffusers' names"])
def test_a_lora_that_diffusers_saved_is_gone_on_from(load_model: Load, tmp_path: Path, ours: bool) -> None:
    """As its training scripts save: with alpha in the metadata, its own names for attention or PEFT's for all."""
    model = load_model()
    targets = ["to_q", "to_k", "to_v", "to_out.0", *(["ff.net.2", "conv1"] if ours else [])]
    model.unet.add_adapter(LoraConfig(r=4, lora_alpha=3, target_modules=targets, init_lora_weights="gaussian"))
    encoder = model.text_encoders[0].model
    encoder.add_adapter(LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(4)
    for module in (model.unet, encoder):
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    saved = {module: get_peft_model_state_dict(module) for module in (model.unet, encoder)}
    if not ours:
        saved = {module: convert_state_dict_to_diffusers(state) for module, state in saved.items()}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=saved[model.unet],
        text_encoder_lora_layers=saved[encoder],
        **_collate_lora_metadata({"unet": model.unet, "text_encoder": encoder}),
    )
    before = painted(model)
    network = LoRA(rank=4, alpha=3, conv_rank=4, conv_alpha=3)
    second = load_model()
    plain = painted(second)
    begun(second, network, open_weights(tmp_path / "pytorch_lora_weights.safetensors", field=FIELD))
    assert np.array_equal(painted(second), before)
    assert np.abs(before - plain).max() > 3


def test_without_an_alpha_the_scale_is_1_as_for_every_reader(load_model: Load, tmp_path: Path) -> None:
    adapter = trained(load_model(), LoRA(rank=4, alpha=4))
    tensors = {key: it for key, it in adapter.file_tensors(torch.float32).items() if not key.endswith(".alpha")}
    initial = written(tmp_path / "lora.safetensors", tensors)
    again = begun(load_model(), LoRA(rank=4, alpha=4), initial).file_tensors(torch.float32)
    assert all(torch.equal(again[key], it) for key, it in tensors.items())
    with pytest.raises(RunError, match=r"has alpha 4 at rank 4, not 3"):
        begun(load_model(), LoRA(rank=4, alpha=3), initial)


@pytest.mark.parametrize("name", ["LoCon", "LoHa", "LoKr", "DoRA"])
def test_an_alpha_that_differs_by_a_power_of_two_is_made_up_for_exactly(
    load_model: Load, tmp_path: Path, name: str
) -> None:
    network = NETWORKS[name]
    model = load_model()
    initial = written(tmp_path / "lora.safetensors", trained(model, network).file_tensors(torch.float32))
    assert network.conv_alpha
    other = network.model_copy(update={"alpha": network.alpha * 8, "conv_alpha": network.conv_alpha / 2})
    second = load_model()
    begun(second, other, initial)
    assert np.array_equal(painted(second), painted(model))


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (
            LoRA(rank=8, alpha=2, conv_rank=2, conv_alpha=1),
            "its layers are not those of this network: lora_unet_down_blocks_0_attentions_0_proj_in has "
            "lora_down.weight[4, 32, 1, 1] lora_up.weight[32, 4, 1, 1], not lora_down.weight[8, 32, 1, 1] lora_up",
        ),
        (LoHa(rank=4, alpha=2, conv_rank=2, conv_alpha=1), "has lora_down.weight[4, 32, 1, 1] lora_up.weight[32, 4, 1"),
        (DoRA(rank=4, alpha=2, conv_rank=2, conv_alpha=1), "not dora_scale[1, 32, 1, 1] lora_down.weight[4, 32, 1, 1]"),
        (
            LoRA(rank=4, alpha=3, conv_rank=2, conv_alpha=1),
            "its alpha differs, and not by a power of two, so that its weights could not stay exact: "
            "lora_unet_down_blocks_0_attentions_0_proj_in has alpha 2 at rank 4, not 3; ",
        ),
        (
            LoRA(rank=4, alpha=2),
            "it holds layers that are not trained here and would be lost: lora_unet_down_blocks_0_downsamplers_0",
        ),
    ],
    ids=["rank", "LoHa", "DoRA", "alpha", "convolutions"],
)
def test_what_does_not_fit_is_told(load_model: Load, tmp_path: Path, network: Network, told: str) -> None:
    adapter = trained(load_model(), LoRA(rank=4, alpha=2, conv_rank=2, conv_alpha=1))
    initial = written(tmp_path / "anna.safetensors", adapter.file_tensors(torch.float16))
    with pytest.raises(RunError) as caught:
        begun(load_model(), network, initial)
    assert caught.value.reason is FailureReason.MODEL_REJECTED
    (line,) = caught.value.message.splitlines()
    assert line.startswith(f"{FIELD}: anna.safetensors: ")
    assert told in line
    assert " more" in line
    assert len(line) < 1000
    assert "network.type, rank, convRank, alpha" in caught.value.advice


def refusal(model: StableDiffusion, initial: WeightsFile, *, text: bool = True) -> str:
    with pytest.raises(RunError) as caught:
        begun(model, LoRA(rank=4, alpha=2), initial, text=text)
    assert caught.value.reason is FailureReason.MODEL_REJECTED
    return caught.value.message


def test_several_misfits_are_told_at_once(load_model: Load, tmp_path: Path) -> None:
    tensors = trained(load_model(), LoRA(rank=4, alpha=2)).file_tensors(torch.float16)
    some = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[some] = tensors[some] * float("nan")
    told = refusal(load_model(), written(tmp_path / "a.safetensors", tensors), text=False).splitlines()
    assert [line.split(": ")[2] for line in told] == [
        "it holds layers that are not trained here and would be lost",
        "it holds numbers that are not finite",
    ]
    assert "lora_te_text_model_encoder_layers_0" in told[0]


def test_magnitudes_of_outputs_are_refused(load_model: Load, tmp_path: Path) -> None:
    """As LyCORIS writes them unless told otherwise."""
    tensors = trained(load_model(), DoRA(rank=4, alpha=2)).file_tensors(torch.float32)
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.dora_scale"
    assert tensors[key].shape == (1, 32)
    tensors[key] = torch.ones(64, 1)
    with pytest.raises(RunError, match=r"attn2_to_k has dora_scale\[64, 1\] .*, not dora_scale\[1, 32\]"):
        begun(load_model(), DoRA(rank=4, alpha=2), written(tmp_path / "a.safetensors", tensors))


def test_files_of_something_else_are_refused(load_model: Load, base_file: Path, tmp_path: Path) -> None:
    told = refusal(load_model(), open_weights(base_file, field=FIELD))
    assert told == f"{FIELD}: {base_file.name} holds no layer that is trained here"
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(RunError, match=rf"^{FIELD}: page.safetensors does not begin with the header"):
        open_weights(tmp_path / "page.safetensors", field=FIELD)


@pytest.mark.parametrize("said", ["{", "[]", json.dumps({"unet.lora_alpha": "four"})])
def test_settings_that_cannot_be_read_are_told(load_model: Load, tmp_path: Path, said: str) -> None:
    path = "unet.mid_block.attentions.0.proj_in"
    tensors = {f"{path}.lora_A.weight": torch.ones(4, 64, 1, 1), f"{path}.lora_B.weight": torch.ones(64, 4, 1, 1)}
    told = refusal(load_model(), written(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=said))
    assert "its metadata cannot be read: " in told


def test_settings_of_single_layers_and_rank_stabilised_scales_count(load_model: Load, tmp_path: Path) -> None:
    paths = [f"unet.mid_block.attentions.0.{layer}" for layer in ("proj_in", "proj_out")]
    tensors = {f"{path}.lora_A.weight": torch.ones(4, 64, 1, 1) for path in paths}
    tensors |= {f"{path}.lora_B.weight": torch.ones(64, 4, 1, 1) for path in paths}
    said = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"proj_out": 4}, "unet.use_rslora": True}
    initial = written(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=json.dumps(said))
    layers = {it.place.module: it for it in begun(load_model(), LoRA(rank=4, alpha=2), initial).layers}
    factors = [layers[path.removeprefix("unet.")].weights["down"].unique().tolist() for path in paths]
    assert factors == [[2.0], [4.0]]  # alpha is 2·sqrt(4) and 4·sqrt(4), where ours is 2


def test_layers_that_the_file_lacks_begin_at_nothing(load_model: Load, tmp_path: Path) -> None:
    first = load_model()
    unet_only = trained(first, LoRA(rank=4, alpha=2), text_encoder=False)
    second = load_model()
    again = begun(
        second, LoRA(rank=4, alpha=2), written(tmp_path / "a.safetensors", unet_only.file_tensors(torch.float32))
    )
    assert len(again.named_parameters("text_encoder")) == 2 * 12
    assert np.array_equal(painted(first), painted(second))


def test_a_run_that_began_with_a_file_goes_on_bit_for_bit(make: Maker, load_model: Load, tmp_path: Path) -> None:
    network = {"type": "LoRA", "rank": 4, "alpha": 2}
    tensors = trained(load_model(), LoRA(rank=4, alpha=2)).file_tensors(torch.float16)
    initial = written(tmp_path / "a.safetensors", tensors)
    straight, fresh = make(network=network, initial=initial), make(network=network)
    assert not same(weights(straight), weights(fresh))
    straight.step()
    straight.capture().write(tmp_path / "state")
    straight.step()
    resumed = make(network=network, initial=initial)
    resumed.load(tmp_path / "state")
    resumed.step()
    assert same(weights(straight), weights(resumed))


def test_the_file_is_part_of_what_a_state_must_match(tmp_path: Path) -> None:
    base: Future[BaseModelFile] = Future()
    base.set_result(BaseModelFile("m", "0" * 64, "0" * 8))
    course: Any = type("Course", (), {"fingerprint": "pictures"})
    files = [write_tiny_sd15(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (0, 1)]
    inputs = [None, *(open_weights(path) for path in files)]
    rest: Any = None
    prints = {Inputs(rest, rest, base, initial, course, rest).fingerprint(course) for initial in inputs}
    assert len(prints) == 3
