"""From `kubectl apply` to checkpoints in the store: what a user sees of one run that goes well."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import Lab
from tests.e2e.kube import until
from tests.e2e.painting import paint
from tests.e2e.runs import KIND, RunObjects, training

NAME = "chain"
EPOCHS = 10


@pytest.fixture(scope="module")
def manifest(lab: Lab) -> dict[str, Any]:
    uri = lab.upload_subject("chain", repeats=1, count=15)
    manifest = training(NAME, dataset=uri, epochs=EPOCHS, batchSize=4)
    samples = manifest["spec"]["samples"]
    samples |= {"prompts": samples["prompts"][:1], "seeds": samples["seeds"][:1]}  # one picture an epoch is compared
    return manifest


@pytest.fixture(scope="module")
def done(lab: Lab, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The status of a run of ten short epochs."""
    lab.kubectl.apply(manifest)
    seen: set[int] = set()

    def finished() -> dict[str, Any] | None:
        status = (lab.kubectl.get(KIND, NAME) or {}).get("status", {})
        seen.add(status.get("progress", {}).get("epoch", 0))
        return status if status.get("phase") in {"Succeeded", "Failed"} else None

    status = until(f"{NAME} has ended", finished, timeout=420, pause=1)
    assert status["phase"] == "Succeeded", status.get("failure")
    assert len(seen) > 3, f"the status was not live: it showed only the epochs {sorted(seen)}"
    yield status
    lab.kubectl.run("delete", KIND, NAME, "--ignore-not-found", "--wait")


@pytest.fixture(scope="module")
def objects(lab: Lab, done: dict[str, Any]) -> RunObjects:
    return lab.objects(done)


def test_status_lists_every_epoch(done: dict[str, Any]) -> None:
    assert [checkpoint["epoch"] for checkpoint in done["checkpoints"]] == list(range(1, EPOCHS + 1))
    assert done["progress"]["percentage"] == 100
    assert done["progress"]["step"] == done["plan"]["totalSteps"]
    conditions = {condition["type"]: condition["status"] for condition in done["conditions"]}
    assert (conditions["Ready"], conditions["Complete"]) == ("True", "True")


def test_kubectl_wait_sees_the_end(lab: Lab, done: dict[str, Any]) -> None:
    lab.kubectl.run("wait", "--for=condition=Complete", f"{KIND}/{NAME}", "--timeout=5s")


def test_every_checkpoint_of_the_status_lies_in_the_store(objects: RunObjects, done: dict[str, Any]) -> None:
    keys = set(objects.keys())
    for checkpoint in done["checkpoints"]:
        assert checkpoint["uri"].split(f"{objects.prefix}/")[1] in keys
    assert {"index.json", "plan.json", f"{NAME}.safetensors"} <= keys
    assert len([key for key in keys if key.startswith("state/")]) > 0


def test_every_checkpoint_paints_in_diffusers_the_picture_it_had_in_training(
    lab: Lab, objects: RunObjects, manifest: dict[str, Any]
) -> None:
    samples = manifest["spec"]["samples"]
    for epoch in range(EPOCHS + 1):
        weights = objects.read(f"checkpoints/epoch-{epoch:06d}/{NAME}-{epoch:06d}.safetensors") if epoch else None
        painted = paint(
            lab.base_model, weights=weights, samples=samples, resolution=manifest["spec"]["training"]["resolution"]
        )
        stored = Image.open(io.BytesIO(objects.read(f"samples/epoch-{epoch:06d}/p0-s{samples['seeds'][0]}.png")))
        difference = np.abs(np.asarray(painted, dtype=int) - np.asarray(stored.convert("RGB"), dtype=int))
        assert difference.max() <= 1, f"epoch {epoch}: the picture differs by {difference.max()} of 255"


def test_training_changes_the_picture(objects: RunObjects, manifest: dict[str, Any]) -> None:
    seed = manifest["spec"]["samples"]["seeds"][0]
    first, last = (
        np.asarray(Image.open(io.BytesIO(objects.read(f"samples/epoch-{epoch:06d}/p0-s{seed}.png"))), dtype=int)
        for epoch in (0, EPOCHS)
    )
    assert np.abs(first - last).mean() > 3


def test_deleting_takes_job_pods_and_config_map_and_leaves_the_store(
    lab: Lab, objects: RunObjects, done: dict[str, Any]
) -> None:
    before = objects.keys()
    selector = f"darkroom.dev/name={NAME}"
    kinds = ("jobs", "pods", "configmaps")
    assert lab.kubectl.list("jobs", selector)
    assert lab.kubectl.list("configmaps", selector)
    lab.kubectl.run("delete", KIND, NAME, "--wait")
    until("everything is gone", lambda: not any(lab.kubectl.list(kind, selector) for kind in kinds), timeout=60)
    assert objects.keys() == before
