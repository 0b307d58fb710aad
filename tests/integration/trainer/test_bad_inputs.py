"""Inputs that only a pod can see: each ends the run with the right exit code, reason and words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from darkroom_api.failures import ExitCode, FailureReason
from darkroom_api.result import RunFailure
from tests.builders.pictures import draw, write_pictures
from tests.integration.trainer.trainer_runs import Bench

UNET = "model.diffusion_model.input_blocks.0.0.weight"


def fail(bench: Bench, *, code: ExitCode, **changes: object) -> RunFailure:
    """Run with a changed spec and return the failure; nothing but the plan may be left in the store."""
    name = f"bad-{bench.runs}"
    exit_code, result = bench.run_here(bench.spec(**changes), name=name)
    assert result.failure, result
    assert (exit_code, result.outcome) == (code, "Failed"), result.failure
    assert result.failure.advice
    assert set(bench.objects(name).keys()) <= {"plan.json"}
    return result.failure


def test_truncated_base_model(bench: Bench, base_model: Path, tmp_path: Path) -> None:
    (tmp_path / "half.safetensors").write_bytes(base_model.read_bytes()[:1_000_000])
    bench.upload(tmp_path / "half.safetensors", "half.safetensors")
    failure = fail(bench, code=ExitCode.DATA, baseModel={"uri": f"s3://{bench.bucket}/half.safetensors"})
    assert failure.reason is FailureReason.MODEL_REJECTED
    assert "half.safetensors is truncated" in failure.message


@pytest.mark.parametrize(
    ("family", "tensors", "expected"),
    [
        (None, ["some.weight"], "no Stable Diffusion checkpoint"),
        (
            "SD15",
            [UNET, "conditioner.embedders.1.model.ln_final.weight"],
            "SD15 is given, but other.safetensors is SDXL",
        ),
        ("SD15", [UNET, "cond_stage_model.model.ln_final.weight"], "SD15 is given, but other.safetensors is SD2"),
        (None, [UNET], "lacks VAE and text encoder"),
        (None, [UNET, "conditioner.embedders.1.model.ln_final.weight"], "lacks VAE and text encoders"),
    ],
)
def test_files_that_are_no_whole_model(
    bench: Bench, tmp_path: Path, family: str | None, tensors: list[str], expected: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2, 4) for name in tensors}, path)
    bench.upload(path, "other.safetensors")
    source = {"uri": f"s3://{bench.bucket}/other.safetensors"} | ({"family": family} if family else {})
    failure = fail(bench, code=ExitCode.DATA, baseModel=source)
    assert failure.reason is FailureReason.MODEL_REJECTED
    assert expected in failure.message


def test_pickled_base_models(bench: Bench, tmp_path: Path) -> None:
    """One without a model, and one that would run code."""
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    torch.save({"state_dict": {}, "hook": print}, tmp_path / "more.ckpt")
    for name, expected in (("empty.ckpt", "is no Stable Diffusion"), ("more.ckpt", "holds more than tensors")):
        bench.upload(tmp_path / name, name)
        failure = fail(bench, code=ExitCode.DATA, baseModel={"uri": f"s3://{bench.bucket}/{name}"})
        assert failure.reason is FailureReason.MODEL_REJECTED
        assert expected in failure.message


def test_initial_weights_that_are_not_there_or_of_something_else(bench: Bench, tmp_path: Path) -> None:
    network = {"type": "LoRA", "initialWeights": {"uri": f"s3://{bench.bucket}/none.safetensors"}}
    failure = fail(bench, code=ExitCode.NO_INPUT, network=network)
    assert failure.message.startswith("spec.network.initialWeights.uri: ")
    network["initialWeights"] = {"uri": f"s3://{bench.bucket}/base.safetensors"}
    failure = fail(bench, code=ExitCode.DATA, network=network)
    assert failure.message == "spec.network.initialWeights.uri: base.safetensors holds no layer that is trained here"


def no_pictures(root: Path) -> None:
    (root / "20_sks robot").mkdir(parents=True)
    (root / "20_sks robot" / "notes.md").write_text("nothing to see")


def unnamed_folder(root: Path) -> None:
    write_pictures(root, folder="robots")


def broken_picture(root: Path) -> None:
    write_pictures(root)
    path = root / "2_sks robot" / "1.png"
    path.write_bytes(path.read_bytes()[:-100])


def no_picture_inside(root: Path) -> None:
    write_pictures(root)
    (root / "2_sks robot" / "1.png").write_text("<html>")


def empty_captions(root: Path) -> None:
    write_pictures(root)
    for number in (0, 2):
        (root / "2_sks robot" / f"{number}.txt").write_text("\n")


def other_format(root: Path) -> None:
    write_pictures(root)
    draw((64, 64), seed=1).save(root / "2_sks robot" / "9.bmp")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (no_pictures, ["20_sks robot/: no picture in it"]),
        (unnamed_folder, ["robots/: 4 pictures in a folder that is not named REPEATS_NAME"]),
        (broken_picture, ["2_sks robot/1.png: cannot be decoded"]),
        (no_picture_inside, ["2_sks robot/1.png: is no picture in JPEG, PNG or WebP format"]),
        (empty_captions, ["2_sks robot/0.png: its caption 0.txt is empty", "2_sks robot/2.png: its caption 2.txt"]),
        (other_format, ["2_sks robot/9.bmp: .bmp is not allowed"]),
    ],
)
def test_bad_pictures(bench: Bench, tmp_path: Path, spoil: Callable[[Path], None], expected: list[str]) -> None:
    spoil(tmp_path / "set")
    bench.upload(tmp_path / "set", f"sets/{spoil.__name__}")
    failure = fail(bench, code=ExitCode.DATA, dataset={"uri": f"s3://{bench.bucket}/sets/{spoil.__name__}"})
    assert failure.reason is FailureReason.DATASET_REJECTED
    assert "Allowed: folders named REPEATS_NAME" in failure.message
    for words in expected:
        assert words in failure.message


def test_more_pictures_held_out_than_there_are(bench: Bench) -> None:
    failure = fail(bench, code=ExitCode.DATA, validation={"images": 4})
    assert failure.reason is FailureReason.DATASET_REJECTED
    assert "spec.validation.images: 4 pictures are to be held out, but the dataset has 4 different" in failure.message
    assert "at most 3" in failure.advice


@pytest.mark.parametrize(
    ("prefix", "code", "expected"),
    [
        ("pictures", ExitCode.DATA, "4 of 4 pictures are in spec.dataset.uri too"),
        ("nowhere", ExitCode.NO_INPUT, "there is no object below this prefix"),
        ("notes", ExitCode.DATA, "Found:\n20_sks robot/: no picture in it"),
    ],
)
def test_validation_pictures_that_cannot_judge(
    bench: Bench, tmp_path: Path, prefix: str, code: ExitCode, expected: str
) -> None:
    no_pictures(tmp_path / "notes")
    bench.upload(tmp_path / "notes", "notes")
    failure = fail(bench, code=code, validation={"dataset": {"uri": f"s3://{bench.bucket}/{prefix}"}})
    assert failure.message.startswith("spec.validation.dataset.uri: ")
    assert expected in failure.message


def test_a_gpu_that_is_not_there(bench: Bench) -> None:
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    failure = fail(bench, code=ExitCode.SOFTWARE, compute={"gpus": 1})
    assert "torch sees no GPU" in failure.message
    assert "compute.gpus" in failure.advice


def test_half_precision_on_a_cpu(bench: Bench) -> None:
    failure = fail(bench, code=ExitCode.CONFIG, training={"precision": "FP16"})
    assert "allowed on a CPU: FP32, BF16" in failure.message
