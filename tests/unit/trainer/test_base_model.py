"""The base model's file: what is refused by its header alone, and that what is loaded is what diffusers loads."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from darkroom_api.failures import FailureReason
from darkroom_api.objectives import Objective
from darkroom_trainer.errors import RunError
from darkroom_trainer.families import configurations, recognition
from darkroom_trainer.families.configurations import SD15
from darkroom_trainer.families.loading import load, load_path
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.families.tokenizer import load_tokenizer
from darkroom_trainer.safetensors_file import Header, encode, read_header
from darkroom_trainer.weights_file import open_weights
from tests.builders.models import tiny_tensors
from tests.e2e.painting import pipeline

UNET = "model.diffusion_model."


def refusal(path: Path) -> str:
    with pytest.raises(RunError) as caught:
        read_header(path)
    assert caught.value.reason is FailureReason.MODEL_REJECTED
    assert path.name in caught.value.message
    return caught.value.message


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has 0 bytes"),
        (b"<!DOCTYPE html><html>", "does not begin with the header"),
        (struct.pack("<Q", 500) + b"{}", "is truncated: it has 10 bytes"),
        (struct.pack("<Q", 4) + b"nope", "damaged .safetensors header"),
        (struct.pack("<Q", 4) + b"[[]]", "damaged .safetensors header"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "damaged .safetensors header"),
    ],
)
def test_no_safetensors_file(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert expected in refusal(path)


def test_truncated_and_padded_files(tmp_path: Path, base_file: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = base_file.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is truncated" in refusal(path)
    path.write_bytes(whole + b"xx")
    assert "has 2 bytes that its header does not know" in refusal(path)
    path.write_bytes(whole)
    assert len(read_header(path).shapes) == 964


@pytest.mark.parametrize(
    "bad",
    [
        entry("F16", [2], 0, 5),
        entry("F99", [2], 0, 4),
        entry("F16", [-2], 0, 4),
        entry("F16", [2], 4, 0),
        {"dtype": "F16", "shape": [2]},
        {"dtype": "F16", "shape": 2, "data_offsets": [0, 4]},
        7,
    ],
)
def test_inconsistent_entries(tmp_path: Path, bad: Any) -> None:
    assert "damaged" in refusal(write(tmp_path / "m.safetensors", {"a": bad}, b"1234"))


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(0, 4), (6, 10)], "begins at 6, the one before ends at 4"),
        ([(2, 6), (6, 10)], "begins at 2, the one before ends at 0"),
        ([(0, 4), (2, 6), (6, 10)], "begins at 2, the one before ends at 4"),
    ],
    ids=["gap", "late start", "overlap"],
)
def test_tensors_that_do_not_lie_side_by_side(tmp_path: Path, places: list[tuple[int, int]], expected: str) -> None:
    header = {f"t{begin}": entry("F16", [2], begin, end) for begin, end in reversed(places)}
    path = write(tmp_path / "m.safetensors", header, bytes(10))
    assert expected in refusal(path)
    with pytest.raises(SafetensorError):  # as the library does, which would load it later
        load_file(path)


def test_a_file_that_changes_after_the_check_is_refused(tmp_path: Path, base_file: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(base_file.read_bytes())
    file = open_weights(path)
    path.write_bytes(base_file.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"m.safetensors has the names of SD 1.5, but its tensors do not fit") as caught:
        load(file, SD15, objective=Objective(), dtype=torch.float32, device=torch.device("cpu"))
    assert caught.value.reason is FailureReason.MODEL_REJECTED


def test_encode_gives_the_same_bytes_and_loads(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, dtype=torch.float16)}
    files = {encode(dict(order), {"y": "2", "x": "1"}) for order in (tensors.items(), reversed(tensors.items()))}
    assert len(files) == 1
    path = tmp_path / "f.safetensors"
    path.write_bytes(files.pop())
    assert read_header(path) == Header({"a": (2,), "b": (3,)}, {"x": "1", "y": "2"})


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}, "SD15"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)}, "InstructPix2Pix"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 5, 3, 3)}, "a depth model"),
        (
            {"conditioner.embedders.1.model.ln_final.weight": (1280,), f"{UNET}input_blocks.0.0.weight": (320, 4)},
            "SDXL",
        ),
        ({"conditioner.embedders.0.model.ln_final.weight": (1280,)}, "refiner"),
        ({f"{UNET}label_emb.0.0.weight": (1280, 2816), f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}, "SDXL"),
        ({"cond_stage_model.model.ln_final.weight": (1024,), f"{UNET}input_blocks.0.0.weight": (320, 4)}, "SD2"),
        ({f"{UNET}joint_blocks.0.x": (1,)}, "SD 3"),
        ({f"{UNET}double_blocks.0.x": (1,)}, "FLUX.1"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}, "a LoRA"),
        ({"emb_params": (2, 768)}, "embedding"),
        ({"down_blocks.0.resnets.0.conv1.weight": (320, 4)}, "diffusers folder"),
        ({"encoder.conv_in.weight": (128, 3)}, "a VAE alone"),
        ({"layers.0.weight": (1,)}, "no Stable Diffusion checkpoint"),
        ({}, "no Stable Diffusion checkpoint"),
    ],
)
def test_files_are_recognised_by_their_keys(shapes: dict[str, tuple[int, ...]], expected: str) -> None:
    assert expected in recognition.recognise(shapes)


def test_another_family_is_refused_with_its_name(tmp_path: Path) -> None:
    shapes = {"conditioner.embedders.1.model.ln_final.weight": (1280,)}
    with pytest.raises(RunError, match=r"spec.baseModel.family: SD15 is given, but xl.safetensors is SDXL"):
        recognition.check_family(shapes, "xl.safetensors", family="SD15")


def test_a_file_without_vae_and_text_encoder_is_refused(tmp_path: Path) -> None:
    shapes = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}
    with pytest.raises(RunError, match=r"m.safetensors lacks VAE and text encoder"):
        recognition.check_family(shapes, "m.safetensors", family="SD15")


@pytest.mark.parametrize("family", ["SD15", "SD2", "SDXL"])
def test_the_weights_are_those_that_diffusers_loads(
    base_files: Callable[[str], Path], load_model: Callable[..., StableDiffusion], family: str
) -> None:
    ours, theirs = load_model(family=family), pipeline(base_files(family))
    assert ours.family.name == family
    for part, module in {**ours.parts, "vae": ours.vae}.items():
        expected, loaded = getattr(theirs, part).state_dict(), module.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    for encoder in ours.text_encoders:
        assert encoder.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_files_without_configuration_get_the_published_one(tmp_path: Path) -> None:
    """Real SD 1.5 files carry none; everything but the numbers of heads follows from shapes."""
    path = tmp_path / "m.safetensors"
    tensors = {name: tensor for name, tensor in tiny_tensors().items() if not name.startswith("first_stage_model.")}
    save_file(tensors, path)
    shapes = read_header(path).shapes
    unet = configurations.unet_config(configurations.SD15, shapes)
    assert unet["block_out_channels"] == [32, 32, 64, 64]
    assert (unet["attention_head_dim"], unet["cross_attention_dim"], unet["use_linear_projection"]) == (8, 32, False)
    text = configurations.text_encoder_config(configurations.CLIP_L, shapes)
    assert (text["hidden_size"], text["num_hidden_layers"], text["vocab_size"]) == (32, 2, 49408)
    assert (text["bos_token_id"], text["eos_token_id"], text["intermediate_size"]) == (49406, 49407, 64)


def test_old_names_of_the_text_encoder_load(tmp_path: Path, one_thread: None, base_file: Path) -> None:
    """Merging tools wrote files without `text_model.`, and old ones carry the positions as a tensor."""
    metadata = read_header(base_file).metadata
    tensors = {name.replace(".text_model.", "."): tensor for name, tensor in tiny_tensors().items()}
    tensors[f"{configurations.CLIP_L.prefix}embeddings.position_ids"] = torch.arange(77)
    tensors["model_ema.decay"] = torch.tensor(0.9)
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata=metadata)
    model = load_path(path, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert model.text_encoders[0].model.dtype == model.unet.dtype == torch.bfloat16
    assert model.vae.dtype == torch.float32


@pytest.mark.parametrize("change", ["lose a tensor", "wrong shape", "wrong configuration", "configuration no JSON"])
def test_tensors_that_do_not_fit_together(tmp_path: Path, base_file: Path, change: str) -> None:
    tensors, metadata = tiny_tensors(), read_header(base_file).metadata
    if change == "lose a tensor":
        del tensors[f"{UNET}middle_block.1.proj_in.weight"]
    elif change == "wrong shape":
        tensors[f"{UNET}middle_block.1.proj_in.bias"] = torch.zeros(3)
    elif change == "wrong configuration":
        metadata["darkroom.config"] = json.dumps({"unet": {"layers_per_block": 3}})
    else:
        metadata["darkroom.config"] = "{"
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(RunError) as caught:
        load_path(path, dtype=torch.float32, device=torch.device("cpu"))
    assert caught.value.reason is FailureReason.MODEL_REJECTED
    assert "m.safetensors" in caught.value.message


def test_the_vocabulary_is_whole() -> None:
    assert len(load_tokenizer()) == 49408
