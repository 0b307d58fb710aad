"""Which files of a diffusers folder are chosen, and what is refused by names and index alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from darkroom_api.failures import FailureReason
from darkroom_trainer.diffusers_folder import PIPELINES, classes_of, wanted_files
from darkroom_trainer.errors import RunError

SD, XL = PIPELINES.values()
CONFIGS = ["model_index.json", "scheduler/scheduler_config.json"]


def index(kind: str = "StableDiffusionPipeline", **parts: Any) -> bytes:
    entries = {part: ["some", name] for part, name in PIPELINES.get(kind, SD).items()}
    return json.dumps({"_class_name": kind, "safety_checker": [None, None], **entries, **parts}).encode()


def folder(*weights: str, parts: dict[str, str] = SD) -> list[str]:
    """Return the files of a folder that has more than is needed."""
    more = ["README.md", "tokenizer/vocab.json", "safety_checker/model.safetensors", "v1-5-pruned.safetensors"]
    return [*more, *CONFIGS, *(f"{part}/config.json" for part in parts), *weights]


def chosen(*weights: str) -> list[str]:
    """Return what is chosen of the UNet's files, beside plain ones of the other parts."""
    others = ["text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    found = wanted_files(folder(*others, *(f"unet/{it}" for it in weights)), SD)
    return [it.removeprefix("unet/") for it in found if it.startswith("unet/") and it != "unet/config.json"]


def refusal(names: list[str], parts: dict[str, str] = SD) -> str:
    with pytest.raises(RunError) as caught:
        wanted_files(names, parts)
    assert caught.value.reason is FailureReason.MODEL_REJECTED
    assert "save_pretrained" in caught.value.advice
    return caught.value.message


def test_configurations_and_one_file_of_weights_a_part_are_chosen() -> None:
    weights = ["text_encoder/model.safetensors", "text_encoder_2/model.safetensors"]
    weights += ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    found = wanted_files(folder(*weights, parts=XL), XL)
    assert sorted(found) == sorted([*CONFIGS, *(f"{part}/config.json" for part in XL), *weights])


NAME = "diffusion_pytorch_model"
SHARDS = [f"{NAME}-0000{n}-of-00002" for n in (1, 2)]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ([f"{NAME}.safetensors", f"{NAME}.bin", f"{NAME}.fp16.safetensors"], [f"{NAME}.safetensors"]),
        ([f"{NAME}.bin", f"{NAME}.fp16.safetensors"], [f"{NAME}.bin"]),
        ([f"{NAME}.fp16.safetensors", f"{NAME}.fp16.bin"], [f"{NAME}.fp16.safetensors"]),
        ([f"{NAME}.fp16.bin", f"{NAME}.non_ema.bin"], [f"{NAME}.fp16.bin"]),
        (
            [*(f"{it}.safetensors" for it in SHARDS), f"{NAME}.safetensors.index.json", f"{NAME}.bin"],
            [f"{it}.safetensors" for it in SHARDS],
        ),
        ([*(f"{it}.bin" for it in SHARDS)], [f"{it}.bin" for it in SHARDS]),
        ([*(f"{it}.fp16.safetensors" for it in SHARDS)], [f"{it}.fp16.safetensors" for it in SHARDS]),
        (
            [f"{NAME}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)],
            [f"{NAME}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)],
        ),
        ([f"{SHARDS[0]}.safetensors", f"{NAME}.fp16.safetensors"], [f"{NAME}.fp16.safetensors"]),
        ([f"{NAME}-00001-of-00001.safetensors", f"{SHARDS[1]}.safetensors"], [f"{NAME}-00001-of-00001.safetensors"]),
    ],
    ids=["safe", "bin", "fp16", "fp16 bin", "shards", "bin shards", "fp16 shards", "new fp16 shards", "torn", "mixed"],
)
def test_the_best_weights_that_there_are_whole_are_chosen(there: list[str], wanted: list[str]) -> None:
    assert chosen(*there) == wanted


def test_all_that_is_missing_is_told_at_once() -> None:
    names = ["model_index.json", "unet/config.json", f"unet/{SHARDS[0]}.safetensors", "vae/config.json"]
    told = refusal([*names, f"vae/{NAME}.safetensors"])
    assert told.split("; ") == [
        "the folder lacks scheduler/scheduler_config.json",
        "text_encoder/config.json",
        f"unet/{NAME}.safetensors, whole or in all its shards",
        "text_encoder/model.safetensors, whole or in all its shards",
    ]


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_folder_tells_its_parts(kind: str) -> None:
    assert classes_of(index(kind)) == PIPELINES[kind]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "its model_index.json cannot be read: JSONDecodeError"),
        (b"[]", "its model_index.json cannot be read: TypeError"),
        (b"{}", "its model_index.json cannot be read: KeyError '_class_name'"),
        (index("StableDiffusionInpaintPipeline"), "it is a folder for StableDiffusionInpaintPipeline; allowed: Stable"),
        (index("StableDiffusionXLImg2ImgPipeline"), "it is a folder for StableDiffusionXLImg2ImgPipeline; allowed: "),
        (
            index("FluxPipeline"),
            "it is a folder for FluxPipeline; allowed: StableDiffusionPipeline and StableDiffusionXL",
        ),
        (
            index(unet=["diffusers", "UNet3D"], vae=[None, None]),
            "its unet is UNet3D; allowed: UNet2DConditionModel\nits vae is not there; allowed: AutoencoderKL",
        ),
        (index(text_encoder="CLIP"), "its text_encoder is not there; allowed: CLIPTextModel"),
    ],
)
def test_folders_of_other_pipelines_are_refused(content: bytes, told: str) -> None:
    with pytest.raises(RunError) as caught:
        classes_of(content)
    assert caught.value.reason is FailureReason.MODEL_REJECTED
    assert told in caught.value.message
