"""What only a pod can see ends the run in seconds, with the right reason, advice and no retry."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tests.e2e.conftest import Lab
from tests.e2e.kube import until
from tests.e2e.runs import KIND, training, wait_for_phase

Spec = dict[str, Any]


def _no_such_bucket(lab: Lab, spec: Spec) -> None:
    spec["baseModel"] = {"uri": "s3://no-such-bucket/base.safetensors"}


def _no_such_key(lab: Lab, spec: Spec) -> None:
    spec["baseModel"] = {"uri": f"s3://{lab.bucket}/models/absent.safetensors"}


def _wrong_credentials(lab: Lab, spec: Spec) -> None:
    lab.create_secret("wrong", access_key="nobody", secret_key="nothing")
    spec["storage"]["credentials"]["secretName"] = "wrong"


def _truncated_model(lab: Lab, spec: Spec) -> None:
    whole = lab.base_model.read_bytes()
    spec["baseModel"] = {"uri": lab.put("bad/truncated.safetensors", whole[: len(whole) // 2])}


def _folder_without_images(lab: Lab, spec: Spec) -> None:
    lab.put("bad/no-images/20_sks robot/notes.txt", b"a robot")
    spec["dataset"] = {"uri": f"s3://{lab.bucket}/bad/no-images"}


def _broken_image(lab: Lab, spec: Spec) -> None:
    lab.put("bad/broken/20_sks robot/broken.png", b"\x89PNG\r\n\x1a\n and nothing more")
    lab.put("bad/broken/20_sks robot/broken.txt", b"a sks robot")
    spec["dataset"] = {"uri": f"s3://{lab.bucket}/bad/broken"}


LONGEST_RUN = 60
"""Seconds from container start to end: most of them are torch's import, six times at once on two cores."""
CASES: dict[str, tuple[Callable[[Lab, Spec], None], str, str]] = {
    "no-such-bucket": (_no_such_bucket, "NotFound", "no-such-bucket"),
    "no-such-key": (_no_such_key, "NotFound", "models/absent.safetensors"),
    "wrong-credentials": (_wrong_credentials, "AccessDenied", ""),
    "truncated-model": (_truncated_model, "ModelRejected", "truncated.safetensors"),
    "folder-without-images": (_folder_without_images, "DatasetRejected", ""),
    "broken-image": (_broken_image, "DatasetRejected", "broken.png"),
}


@pytest.fixture(scope="module", autouse=True)
def all_at_once(lab: Lab) -> Any:
    """Start every case together: most of a case is a pod's start."""
    good = lab.upload_subject("bad", repeats=1, count=4)
    for name, (spoil, _, _) in CASES.items():
        manifest = training(name, dataset=good)
        spoil(lab, manifest["spec"])
        lab.kubectl.apply(manifest)
    yield
    lab.kubectl.run("delete", KIND, *CASES, "--wait=false")


@pytest.mark.parametrize("name", CASES)
def test_run_fails_once_with_reason_and_advice(lab: Lab, name: str) -> None:
    _, reason, told = CASES[name]
    status = wait_for_failure(lab, name)
    failure = status["failure"]
    assert failure["reason"] == reason, failure
    assert told in failure["message"]
    assert failure["advice"].endswith(".")
    assert status["attempts"] == 1
    assert _seconds(status) < LONGEST_RUN
    stalled = next(condition for condition in status["conditions"] if condition["type"] == "Stalled")
    assert failure["advice"] in stalled["message"]


def wait_for_failure(lab: Lab, name: str) -> dict[str, Any]:
    def failed() -> dict[str, Any] | None:
        status = (lab.kubectl.get(KIND, name) or {}).get("status", {})
        return status if status.get("phase") == "Failed" else None

    return until(f"{name} has failed", failed, timeout=180)


def _seconds(status: dict[str, Any]) -> float:
    started, ended = (datetime.fromisoformat(status[key]) for key in ("startTime", "completionTime"))
    return (ended - started).total_seconds()


def test_missing_secret_shows_while_it_lasts_and_the_run_goes_on_by_itself(lab: Lab) -> None:
    name = "missing-secret"
    manifest = training(name, dataset=lab.upload_subject("one", repeats=1, count=4), epochs=1)
    manifest["spec"]["storage"]["credentials"]["secretName"] = "comes-later"
    manifest["spec"]["samples"] = {"prompts": []}
    lab.kubectl.apply(manifest)

    def told() -> bool:
        status = (lab.kubectl.get(KIND, name) or {}).get("status", {})
        return any("comes-later" in condition.get("message", "") for condition in status.get("conditions", []))

    until("the status names the missing Secret", told, timeout=60)
    lab.create_secret("comes-later", access_key=lab.access_key, secret_key=lab.secret_key)
    wait_for_phase(lab.kubectl, name, "Succeeded", timeout=180)
    lab.kubectl.run("delete", KIND, name, "--wait=false")
