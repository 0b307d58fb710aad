from __future__ import annotations

from darkroom_api.uris import S3Location
from darkroom_trainer.retention import superseded
from darkroom_trainer.store import StoredObject

PREFIX = S3Location("studio", "loras/anna-0123456789")


def state(step: int, *, complete: bool = True) -> list[StoredObject]:
    names = ["adapter.safetensors", *(["manifest.json"] if complete else []), "state.json"]
    return [StoredObject(f"{PREFIX.key}/state/step-{step:08d}/{name}", 1) for name in names]


def steps(*objects: list[StoredObject], newest: int) -> list[str]:
    doomed = superseded([one for group in objects for one in group], PREFIX, f"state/step-{newest:08d}")
    assert all(location.bucket == "studio" for location in doomed)
    return [location.key.removeprefix(f"{PREFIX.key}/state/step-000000") for location in doomed]


def test_two_are_kept_and_manifests_go_first() -> None:
    doomed = steps(state(10), state(20), state(30), state(40), newest=40)
    assert doomed == [
        "10/manifest.json",
        "20/manifest.json",
        "10/adapter.safetensors",
        "10/state.json",
        "20/adapter.safetensors",
        "20/state.json",
    ]


def test_a_first_and_a_second_state_delete_nothing() -> None:
    assert steps(state(10), newest=10) == []
    assert steps(state(10), state(20), newest=20) == []


def test_a_directory_without_manifest_is_no_state() -> None:
    doomed = steps(state(10), state(20, complete=False), state(30), newest=30)
    assert doomed == ["20/adapter.safetensors", "20/state.json"]


def test_states_of_later_steps_did_not_verify_and_go() -> None:
    doomed = steps(state(10), state(20), state(30), newest=20)
    assert doomed == ["30/manifest.json", "30/adapter.safetensors", "30/state.json"]
