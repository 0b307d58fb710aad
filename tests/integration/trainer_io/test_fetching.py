from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from darkroom_api.failures import FailureReason
from darkroom_api.training import BaseModelSource
from darkroom_trainer.errors import RunError
from darkroom_trainer.fetching import check_inputs, fetch_base_model, fetch_dataset
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.store import Store
from tests.integration.trainer_io.conftest import RUN, Place


def test_a_prefix_is_mirrored(place: Place, store: Store, tmp_path: Path) -> None:
    contents = {f"20_sks robot/{number:02}.png": bytes(number) for number in range(20)}
    contents["20_sks robot/00.txt"] = "sks robot, grün".encode()
    for name, content in contents.items():
        place.put(f"data/{name}", content)
    place.put("data/", b"")
    place.put("data/20_sks robot/", b"")
    place.put("data-other/1_a/b.png", b"not ours")
    steps: list[tuple[int, int]] = []
    found = fetch_dataset(store, place.at("data"), tmp_path / "data", on_progress=lambda *step: steps.append(step))
    mirrored = {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file()}
    assert mirrored == contents
    total = sum(map(len, contents.values()))
    assert max(steps) == (total, total)


@pytest.mark.parametrize(
    ("names", "reason", "told"),
    [
        ((), FailureReason.NOT_FOUND, "no object below this prefix"),
        (("data/",), FailureReason.NOT_FOUND, "no object below this prefix"),
        (("data/1_a/B.png", "data/1_a/b.png"), FailureReason.DATASET_REJECTED, "differ only in case"),
    ],
)
def test_what_cannot_be_mirrored_is_refused_before_anything_is_written(
    names: tuple[str, ...], reason: FailureReason, told: str, place: Place, store: Store, tmp_path: Path
) -> None:
    for name in names:
        place.put(name, b"x")
    with pytest.raises(RunError, match=r"^spec\.dataset\.uri: s3://.*/data: ") as caught:
        fetch_dataset(store, place.at("data"), tmp_path / "data")
    assert caught.value.reason is reason
    assert told in caught.value.message
    assert not any((tmp_path / "data").iterdir())


def test_a_base_model_arrives_whole_and_is_the_right_one(place: Place, store: Store, tmp_path: Path) -> None:
    content = b"m" * 3_000_000
    digest = hashlib.sha256(content).hexdigest()
    place.put("models/tiny.safetensors", content)
    reporter = Reporter(RUN, "anna-0")
    source = BaseModelSource(uri=f"s3://{place.bucket}/models/tiny.safetensors", sha256=digest)
    path = fetch_base_model(store, source, tmp_path, on_progress=reporter.transfer("base model"))
    assert path == tmp_path / "tiny.safetensors"
    assert path.read_bytes() == content
    assert reporter.snapshot().message == "base model: 3 of 3 MB"
    wrong = source.model_copy(update={"sha256": "b" * 64})
    with pytest.raises(RunError, match=rf"^spec\.baseModel\.sha256: b+ is given, but .* has {digest}$") as caught:
        fetch_base_model(store, wrong, tmp_path / "wrong")
    assert caught.value.reason is FailureReason.MODEL_REJECTED
    assert not any((tmp_path / "wrong").iterdir())


@pytest.mark.parametrize(
    ("uri", "reason", "told"),
    [
        ("models/none.safetensors", FailureReason.NOT_FOUND, "there is no such object"),
        ("", FailureReason.INVALID_SPEC, "names a bucket"),
    ],
)
def test_a_base_model_that_is_not_there_is_named(
    uri: str, reason: FailureReason, told: str, place: Place, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"^spec\.baseModel\.uri: ") as caught:
        fetch_base_model(store, BaseModelSource(uri=f"s3://{place.bucket}/{uri}"), tmp_path)
    assert caught.value.reason is reason
    assert told in caught.value.message


FOLDER = {
    "model_index.json": json.dumps(
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
        }
    ).encode(),
    "scheduler/scheduler_config.json": b"{}",
    **{f"{part}/config.json": b"{}" for part in ("unet", "vae", "text_encoder")},
    "unet/diffusion_pytorch_model.safetensors": b"u" * 2_000_000,
    "vae/diffusion_pytorch_model.safetensors": b"v" * 1000,
    "text_encoder/model.safetensors": b"t" * 1000,
}
NOT_NEEDED = ("unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors", "v1-5-pruned.ckpt")


def put_folder(place: Place, *, without: str = "", **changes: bytes) -> BaseModelSource:
    for name, content in {**FOLDER, **dict.fromkeys(NOT_NEEDED, b"x"), **changes}.items():
        if name != without:
            place.put(f"models/sd-1.5/{name}", content)
    place.put("models/sd-1.5/", b"")
    return BaseModelSource(uri=f"s3://{place.bucket}/models/sd-1.5/")


def test_of_a_diffusers_folder_only_what_is_needed_is_fetched(place: Place, store: Store, tmp_path: Path) -> None:
    source, steps = put_folder(place), list[tuple[int, int]]()
    check_inputs(store, source, {})
    path = fetch_base_model(store, source, tmp_path, on_progress=lambda *step: steps.append(step))
    assert path == tmp_path / "sd-1.5"
    assert {str(it.relative_to(path)): it.read_bytes() for it in path.rglob("*") if it.is_file()} == FOLDER
    total = sum(map(len, FOLDER.values()))
    assert max(steps) == (total, total)


@pytest.mark.parametrize(
    ("without", "changes", "reason", "told"),
    [
        ("model_index.json", {}, FailureReason.NOT_FOUND, "there is no model_index.json below this prefix"),
        ("vae/config.json", {}, FailureReason.MODEL_REJECTED, "the folder lacks vae/config.json"),
        (
            "",
            {"model_index.json": b'{"_class_name": "StableDiffusionInpaintPipeline"}'},
            FailureReason.MODEL_REJECTED,
            "it is a folder for StableDiffusionInpaintPipeline; allowed: StableDiffusionPipeline and",
        ),
    ],
)
def test_a_folder_that_will_not_do_is_refused_before_anything_is_fetched(
    without: str,
    changes: dict[str, bytes],
    reason: FailureReason,
    told: str,
    place: Place,
    store: Store,
    tmp_path: Path,
) -> None:
    source = put_folder(place, without=without, **changes)
    for attempt in (
        lambda: check_inputs(store, source, {}),
        lambda: fetch_base_model(store, source, tmp_path / "model"),
    ):
        with pytest.raises(RunError, match=r"^spec\.baseModel\.uri: s3://.*/models/sd-1\.5/: ") as caught:
            attempt()
        assert caught.value.reason is reason
        assert told in caught.value.message
    assert not any(it.is_file() for it in tmp_path.rglob("*"))
