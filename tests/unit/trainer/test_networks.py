"""Networks of every kind: they begin as nothing, paint what their files paint, and their files are others' files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from darkroom_api.networks import DoRA, LoHa, LoKr, LoRA, Network
from darkroom_trainer import sampling
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.lora_format import encode_lora
from darkroom_trainer.networks.about import about_network
from darkroom_trainer.networks.adapter import inject
from darkroom_trainer.networks.lokr import divided
from tests.builders.networks import trained
from tests.e2e import painting

Load = Callable[..., StableDiffusion]
FAMILIES = ["SD15", "SD2", "SDXL"]
NETWORKS: dict[str, Network] = {
    "LoRA": LoRA(rank=4, alpha=2),
    "LoCon": LoRA(rank=4, alpha=2, conv_rank=2, conv_alpha=1.5),
    "LoHa": LoHa(rank=3, alpha=2, conv_rank=2, conv_alpha=1.5),
    "LoHa as wide as a layer": LoHa(rank=8, alpha=2),
    "LoKr": LoKr(rank=2, alpha=1, conv_rank=3, conv_alpha=1.5, factor=4),
    "LoKr of factors alone": LoKr(rank=1, alpha=1.5, conv_rank=1, conv_alpha=0.5, decompose_both=True),
    "LoKr of whole matrices": LoKr(conv_rank=1, conv_alpha=4, alpha=4, full_matrix=True),
    "DoRA": DoRA(rank=4, alpha=2, conv_rank=2, conv_alpha=1.5),
}
PICTURE = sampling.Picture(
    prompt="sks robot", negative_prompt="blurred", seed=7, width=96, height=64, steps=3, guidance_scale=5.0
)


def painted(model: StableDiffusion) -> np.ndarray:
    return np.asarray(sampling.paint(model, PICTURE), dtype=np.int16)


def painted_by_diffusers(base_file: Path, weights: bytes | None) -> np.ndarray:
    samples = {
        "prompts": [PICTURE.prompt],
        "negativePrompt": PICTURE.negative_prompt,
        "seeds": [PICTURE.seed],
        "width": PICTURE.width,
        "height": PICTURE.height,
        "steps": PICTURE.steps,
        "guidanceScale": PICTURE.guidance_scale,
    }
    return np.asarray(painting.paint(base_file, weights=weights, samples=samples, resolution=64), dtype=np.int16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_changes_nothing_before_training(load_model: Load, name: str, dtype: torch.dtype) -> None:
    model = load_model(dtype)
    before = painted(model)
    adapter = inject(NETWORKS[name], model, seed=1, train_text_encoder=True)
    assert np.array_equal(before, painted(model))
    assert {it.dtype for it in adapter.named_parameters().values()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["LoRA", "LoCon"])
def test_diffusers_paints_the_picture_of_the_training(
    load_model: Load, base_files: Callable[[str], Path], name: str, family: str
) -> None:
    model = load_model(family=family)
    before = painted(model)
    adapter = trained(model, NETWORKS[name])
    with adapter.rounded(torch.float16):
        ours = painted(model)
    theirs = painted_by_diffusers(base_files(family), encode_lora(adapter.file_tensors(torch.float16), {}))
    # SDXL's pipeline adds up in another order: one of ten thousand numbers is rounded the other way.
    rounding = 1 if family == "SDXL" else 0
    assert np.abs(before - painted_by_diffusers(base_files(family), None)).max() <= rounding
    assert np.abs(ours - theirs).max() <= rounding
    assert np.abs(ours - before).max() > 3


def change(its: dict[str, torch.Tensor], shape: torch.Size) -> torch.Tensor:
    if "lora_up.weight" in its:
        dim = its["lora_down.weight"].shape[0]
        found = its["lora_up.weight"].flatten(1) @ its["lora_down.weight"].flatten(1)
    elif "hada_w1_a" in its:
        dim = its["hada_w1_b"].shape[0]
        found = (its["hada_w1_a"] @ its["hada_w1_b"]) * (its["hada_w2_a"] @ its["hada_w2_b"])
    else:
        pairs = [name for name in ("lokr_w1", "lokr_w2") if name not in its]
        dim = its[f"{pairs[-1]}_b"].shape[0] if pairs else None
        first, second = (
            its[f"{name}_a"] @ its[f"{name}_b"] if name in pairs else its[name] for name in ("lokr_w1", "lokr_w2")
        )
        found = torch.kron(first[:, :, None, None] if second.ndim == 4 else first, second)
    return found.reshape(shape) * (1 if dim is None else its["alpha"] / dim)


def merged(file: dict[str, torch.Tensor], layer: str, weight: torch.Tensor) -> torch.Tensor:
    """Return a layer's weight under a file, in fp64, as ComfyUI (`comfy/weight_adapter`) and A1111 do."""
    its = {name.removeprefix(f"{layer}."): it.double() for name, it in file.items() if name.startswith(f"{layer}.")}
    changed = weight.double() + change(its, weight.shape)
    if "dora_scale" not in its:
        return changed
    columns = changed.transpose(0, 1).reshape(weight.shape[1], -1).norm(dim=1)
    columns = columns.reshape(-1, *[1] * (weight.ndim - 1)).transpose(0, 1)
    return changed * (its["dora_scale"] / columns)


def output(layer: torch.nn.Linear | torch.nn.Conv2d, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    if isinstance(layer, torch.nn.Linear):
        return torch.nn.functional.linear(inputs, weight, bias)
    return torch.nn.functional.conv2d(inputs, weight, bias, stride=layer.stride, padding=layer.padding)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_readers_merge_what_was_trained(load_model: Load, name: str, family: str) -> None:
    """Layer by layer, for any inputs, with the weights that an FP16 file gives back."""
    model = load_model(family=family)
    adapter = trained(model, NETWORKS[name])
    file = load(encode_lora(adapter.file_tensors(torch.float16), {}))
    generator = torch.Generator().manual_seed(3)
    with adapter.rounded(torch.float16), torch.no_grad():
        for place in (it.place for it in adapter.layers):
            shape = (2, place.layer.weight.shape[1], *((6, 6) if place.layer.weight.ndim == 4 else ()))
            inputs = torch.randn(shape, generator=generator)
            expected = output(place.layer, inputs.double(), merged(file, place.name, place.layer.weight))
            plain = output(place.layer, inputs.double(), place.layer.weight.double())
            error = (place.layer(inputs) - expected).abs().max() / expected.abs().max()
            assert error < 1e-6, place.name
            assert (plain - expected).abs().max() > 1e-2 * plain.abs().max(), place.name
            with adapter.at_strength(0.6):
                weaker = place.layer(inputs)
            expected = plain + 0.6 * (expected - plain)
            assert (weaker - expected).abs().max() < 1e-6 * expected.abs().max(), place.name


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_with_the_file_merged_paints_the_same(load_model: Load, name: str) -> None:
    model, plain = load_model(), load_model()
    adapter = trained(model, NETWORKS[name], size=0.1)
    file = load(encode_lora(adapter.file_tensors(torch.bfloat16), {}))
    with adapter.rounded(torch.bfloat16):
        ours = painted(model)
    before = painted(plain)
    for place in (it.place for it in adapter.layers):
        layer = plain.parts[place.part].get_submodule(place.module)
        layer.weight.data = merged(file, place.name, layer.weight).float()
    assert np.abs(ours - painted(plain)).max() <= 1
    assert np.abs(ours - before).max() > 3


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_training_gives_the_same_bytes(load_model: Load, name: str) -> None:
    first, second = (
        encode_lora(trained(load_model(), NETWORKS[name]).file_tensors(torch.float16), {}) for _ in range(2)
    )
    assert first == second


def test_convolutions_have_rank_and_alpha_of_their_own(load_model: Load) -> None:
    tensors = load(encode_lora(trained(load_model(), NETWORKS["LoCon"]).file_tensors(torch.float16), {}))
    assert len(tensors) == 3 * (277 + 2 * 6)  # a shortcut fewer than published: two levels are equally wide here
    resnet = "lora_unet_down_blocks_2_resnets_0"
    shapes = {name.removeprefix(f"{resnet}_"): tuple(it.shape) for name, it in tensors.items() if resnet in name}
    assert shapes == {
        "conv1.lora_down.weight": (2, 32, 3, 3),
        "conv1.lora_up.weight": (64, 2, 1, 1),
        "conv1.alpha": (),
        "time_emb_proj.lora_down.weight": (4, 128),
        "time_emb_proj.lora_up.weight": (64, 4),
        "time_emb_proj.alpha": (),
        "conv2.lora_down.weight": (2, 64, 3, 3),
        "conv2.lora_up.weight": (64, 2, 1, 1),
        "conv2.alpha": (),
        "conv_shortcut.lora_down.weight": (4, 32, 1, 1),
        "conv_shortcut.lora_up.weight": (64, 4, 1, 1),
        "conv_shortcut.alpha": (),
    }
    assert tensors[f"{resnet}_conv1.alpha"] == 1.5
    assert tensors[f"{resnet}_time_emb_proj.alpha"] == tensors[f"{resnet}_conv_shortcut.alpha"] == 2.0


def test_magnitudes_belong_to_inputs_and_keep_their_precision(load_model: Load) -> None:
    model = load_model()
    adapter = inject(NETWORKS["DoRA"], model, seed=1, train_text_encoder=True)
    file = load(encode_lora(adapter.file_tensors(torch.bfloat16), {}))
    scales = {name: it for name, it in file.items() if name.endswith(".dora_scale")}
    assert len(scales) == 277 + 2 * 6
    assert {it.dtype for it in scales.values()} == {torch.float32}
    linear = model.unet.down_blocks[2].resnets[0].time_emb_proj.weight
    torch.testing.assert_close(
        scales["lora_unet_down_blocks_2_resnets_0_time_emb_proj.dora_scale"],
        linear.square().sum(0, keepdim=True).sqrt(),
    )
    convolution = model.unet.down_blocks[2].resnets[0].conv1.weight
    scale = scales["lora_unet_down_blocks_2_resnets_0_conv1.dora_scale"]
    assert scale.shape == (1, 32, 1, 1)
    torch.testing.assert_close(scale.flatten(), convolution.square().sum((0, 2, 3)).sqrt())


def test_weight_decay_leads_back_to_the_base_model(load_model: Load) -> None:
    """Of magnitudes too, though others decay them to 0 and the layer with them."""
    model = load_model()
    before = painted(model)
    weights = trained(model, NETWORKS["DoRA"]).named_parameters().values()
    assert not np.array_equal(before, painted(model))
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    torch.optim.AdamW(weights, lr=1.0, weight_decay=1.0).step()
    assert np.array_equal(before, painted(model))


def test_an_input_without_weights_is_no_division_by_zero(load_model: Load) -> None:
    model = load_model()
    layer = model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    layer.weight.data[:, 3] = 0
    before = painted(model)
    inject(DoRA(), model, seed=1, train_text_encoder=False)
    assert np.array_equal(before, painted(model))


@pytest.mark.parametrize(
    ("number", "factor", "expected"),
    [
        (127, None, (1, 127)),
        (128, None, (8, 16)),
        (250, None, (10, 25)),
        (360, None, (18, 20)),
        (1024, None, (32, 32)),
        (250, 4, (2, 125)),
        (250, 8, (5, 50)),
        (360, 16, (15, 24)),
        (512, 16, (16, 32)),
        (320, 32, (10, 32)),
    ],
)
def test_sides_are_divided_as_lycoris_does(number: int, factor: int | None, expected: tuple[int, int]) -> None:
    """By its `factorization`; some rows of the table in its documentation show an older rule."""
    assert divided(number, factor) == expected


def test_files_of_lycoris_networks_have_its_names_and_shapes(load_model: Load) -> None:
    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        file = load(encode_lora(trained(load_model(), NETWORKS[name]).file_tensors(torch.float16), {}))
        start = "lora_unet_up_blocks_1_resnets_0_"
        return {key.removeprefix(start): tuple(it.shape) for key, it in file.items() if key.startswith(start)}

    assert {key: it for key, it in shapes("LoHa").items() if key.startswith("conv1.")} == {
        "conv1.hada_w1_a": (64, 2),
        "conv1.hada_w1_b": (2, 128 * 9),
        "conv1.hada_w2_a": (64, 2),
        "conv1.hada_w2_b": (2, 128 * 9),
        "conv1.alpha": (),
    }
    assert {key: it for key, it in shapes("LoKr").items() if not key.startswith("conv2.")} == {
        "conv1.lokr_w1": (4, 4),
        "conv1.lokr_w2_a": (16, 3),
        "conv1.lokr_w2_b": (3, 32 * 9),
        "conv1.alpha": (),
        "time_emb_proj.lokr_w1": (4, 4),
        "time_emb_proj.lokr_w2_a": (16, 2),
        "time_emb_proj.lokr_w2_b": (2, 32),
        "time_emb_proj.alpha": (),
        "conv_shortcut.lokr_w1": (4, 4),
        "conv_shortcut.lokr_w2_a": (16, 2),
        "conv_shortcut.lokr_w2_b": (2, 32),
        "conv_shortcut.alpha": (),
    }
    factors = shapes("LoKr of factors alone")
    assert (factors["conv1.lokr_w1_a"], factors["conv1.lokr_w1_b"]) == ((8, 1), (1, 8))
    whole = shapes("LoKr of whole matrices")
    assert (whole["conv1.lokr_w1"], whole["conv1.lokr_w2"]) == ((8, 8), (8, 16, 3, 3))
    assert (whole["conv_shortcut.lokr_w2"], whole["time_emb_proj.lokr_w2"]) == ((8, 16, 1, 1), (8, 16))


def test_alpha_of_whole_matrices_says_the_scale_of_1_that_readers_have(load_model: Load) -> None:
    adapter = trained(load_model(), LoKr(rank=16, alpha=4, full_matrix=True))
    assert {it.scale for it in adapter.layers} == {1.0}
    assert {float(it.exact()["alpha"]) for it in adapter.layers} == {16.0}
    low = trained(load_model(), LoKr(rank=2, alpha=1, factor=4))
    assert {it.scale for it in low.layers} == {0.5}


@pytest.mark.parametrize(
    ("name", "module", "arguments"),
    [
        ("LoRA", "networks.lora", {}),
        ("LoCon", "networks.lora", {"conv_dim": "2", "conv_alpha": "1.5"}),
        ("LoHa as wide as a layer", "lycoris.kohya", {"algo": "loha", "preset": "attn-mlp"}),
        ("LoHa", "lycoris.kohya", {"algo": "loha", "conv_dim": "2", "conv_alpha": "1.5"}),
        ("LoKr", "lycoris.kohya", {"algo": "lokr", "factor": "4", "conv_dim": "3", "conv_alpha": "1.5"}),
        (
            "LoKr of whole matrices",
            "lycoris.kohya",
            {"algo": "lokr", "factor": "-1", "full_matrix": "True", "conv_dim": "1", "conv_alpha": "4.0"},
        ),
        (
            "DoRA",
            "lycoris.kohya",
            {"algo": "lora", "dora_wd": "True", "wd_on_output": "False", "conv_dim": "2", "conv_alpha": "1.5"},
        ),
    ],
)
def test_metadata_tells_the_network_as_kohyas_tools_do(name: str, module: str, arguments: dict[str, str]) -> None:
    about = about_network(NETWORKS[name])
    assert (about["ss_network_module"], about["ss_network_dim"]) == (module, NETWORKS[name].rank)
    assert json.loads(str(about["ss_network_args"])) == arguments
