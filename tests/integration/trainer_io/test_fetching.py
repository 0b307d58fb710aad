from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from darkroom_api.failures import FailureReason
from darkroom_api.training import BaseModelSource
from darkroom_trainer.errors import RunError
from darkroom_trainer.fetching import fetch_base_model, fetch_dataset
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
