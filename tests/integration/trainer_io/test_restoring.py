from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from darkroom_api.objects import FileRecord, Manifest
from darkroom_trainer.restoring import restore
from darkroom_trainer.store import Store
from tests.integration.trainer_io.conftest import RUN, Place


def put_directory(place: Place, directory: str, *, number: int, loss: float | None = None, **files: bytes) -> None:
    """Put a directory as the publisher would."""
    records = []
    for name, content in files.items():
        real = name.replace("_", ".")
        place.put(f"{place.prefix.key}/{directory}/{real}", content)
        records.append(FileRecord(name=real, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))
    manifest = Manifest(run=RUN, epoch=number, step=number, files=records, validation_loss=loss)
    place.put(f"{place.prefix.key}/{directory}/manifest.json", manifest.model_dump_json(by_alias=True).encode())


def put_state(place: Place, step: int) -> str:
    directory = f"state/step-{step:08d}"
    put_directory(place, directory, number=step, adapter_safetensors=b"weights", state_json=b"%d" % step)
    return f"{place.prefix.key}/{directory}"


def restored_step(place: Place, store: Store, tmp_path: Path) -> int | None:
    directory = restore(store, place.prefix, tmp_path / "back").state_directory
    if directory is None:
        return None
    assert (directory / "adapter.safetensors").read_bytes() == b"weights"
    return int((directory / "state.json").read_bytes())


def test_a_first_attempt_finds_nothing(place: Place, store: Store, tmp_path: Path) -> None:
    place.put(f"{place.prefix.key}/plan.json", b"{}")
    found = restore(store, place.prefix, tmp_path)
    assert (found.state_directory, found.checkpoints) == (None, [])


def test_the_newest_state_comes_back(place: Place, store: Store, tmp_path: Path) -> None:
    for step in (9, 10, 100):
        put_state(place, step)
    assert restored_step(place, store, tmp_path) == 100


@pytest.mark.parametrize(
    "damage", ["truncated", "changed", "missing", "no manifest", "broken manifest", "leaving its folder"]
)
def test_a_damaged_state_gives_way_to_the_one_before(damage: str, place: Place, store: Store, tmp_path: Path) -> None:
    put_state(place, 10)
    newest = put_state(place, 20)
    evil = Manifest(
        run=RUN, epoch=0, step=20, files=[FileRecord(name="../../x", size_bytes=0, sha256=hashlib.sha256().hexdigest())]
    )
    match damage:
        case "truncated":
            place.put(f"{newest}/adapter.safetensors", b"weigh")
        case "changed":
            place.put(f"{newest}/adapter.safetensors", b"weighs?")
        case "missing":
            place.client.delete_object(Bucket=place.bucket, Key=f"{newest}/adapter.safetensors")
        case "no manifest":
            place.client.delete_object(Bucket=place.bucket, Key=f"{newest}/manifest.json")
        case "broken manifest":
            place.put(f"{newest}/manifest.json", b'{"run": "0123')
        case _:
            place.put(f"{newest}/manifest.json", evil.model_dump_json(by_alias=True).encode())
    assert restored_step(place, store, tmp_path) == 10
    assert not (tmp_path / "back" / "state" / "step-00000020").exists()


def test_without_a_good_state_the_run_begins_anew(place: Place, store: Store, tmp_path: Path) -> None:
    place.put(f"{put_state(place, 10)}/state.json", b"")
    assert restored_step(place, store, tmp_path) is None


def test_checkpoints_and_samples_are_counted_by_their_manifests(place: Place, store: Store, tmp_path: Path) -> None:
    for epoch in (10, 2, 1):
        put_directory(
            place,
            f"checkpoints/epoch-{epoch:06d}",
            number=epoch,
            loss={2: 0.1}.get(epoch),
            **{f"anna-{epoch:06d}_safetensors": b"w" * epoch, "metrics_json": b"{}"},
        )
    for epoch in (0, 2):
        pictures = {"p0-s1_png": b"x", "p1-s1_png": b"y"}
        put_directory(place, f"samples/epoch-{epoch:06d}", number=epoch, **pictures)
    place.put(f"{place.prefix.key}/checkpoints/epoch-000003/anna-000003.safetensors", b"half done")
    place.put(f"{place.prefix.key}/samples/epoch-000001/p0-s1.png", b"half done")
    put_directory(place, "checkpoints/not-ours", number=1, x_safetensors=b"w")
    found = restore(store, place.prefix, tmp_path)
    assert [one.validation_loss for one in found.checkpoints] == [None, 0.1, None]
    assert [(one.epoch, one.step, one.size_bytes, one.num_samples) for one in found.checkpoints] == [
        (1, 1, 1, 0),
        (2, 2, 2, 2),
        (10, 10, 10, 0),
    ]
    assert found.checkpoints[0].sha256 == hashlib.sha256(b"w").hexdigest()
