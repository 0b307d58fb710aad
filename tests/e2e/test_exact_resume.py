"""Whatever stops a run, it ends with an undisturbed run's weights and losses, bit for bit; never two pods live."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Lab
from tests.e2e.kube import PodWatch, until
from tests.e2e.runs import KIND, RunObjects, kill_trainer, running_pod, training, wait_for_phase, wait_for_step

EPOCHS = 3
STEPS_PER_EPOCH = 15
NAMES = ("undisturbed", "killed", "moved")


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> Iterator[RunObjects]:
    """A run that nobody disturbs; its pods live beside those of the other tests."""
    uri = lab.upload_subject("resume", repeats=4, count=15)
    for name in NAMES:
        manifest = training(name, dataset=uri, epochs=EPOCHS, batchSize=4)
        manifest["spec"]["checkpoints"] = {"precision": "FP32", "stateEverySeconds": 1}
        manifest["spec"]["samples"] = {"prompts": []}
        manifest["spec"]["backoffLimit"] = 6
        manifest["spec"]["suspend"] = name != "undisturbed"
        lab.kubectl.apply(manifest)
    done = wait_for_phase(lab.kubectl, "undisturbed", "Succeeded", timeout=240)
    yield lab.objects(done)
    lab.kubectl.run("delete", KIND, *NAMES, "--wait")


def _assert_equal(lab: Lab, name: str, *, reference: RunObjects) -> None:
    done = wait_for_phase(lab.kubectl, name, "Succeeded", timeout=240)
    objects = lab.objects(done)
    losses = reference.losses(EPOCHS)
    assert len(losses) == EPOCHS * STEPS_PER_EPOCH
    assert objects.losses(EPOCHS) == losses
    for epoch in range(1, EPOCHS + 1):
        assert objects.weights(epoch, name) == reference.weights(epoch, "undisturbed")
    assert [checkpoint["epoch"] for checkpoint in done["checkpoints"]] == list(range(1, EPOCHS + 1))


def test_trainer_killed_at_three_steps(lab: Lab, undisturbed: RunObjects) -> None:
    with PodWatch(lab.kubectl, "darkroom.dev/name=killed") as watch:
        lab.kubectl.patch(KIND, "killed", merge={"spec": {"suspend": False}})
        for step in (4, 19, 37):
            kill_trainer(wait_for_step(lab.kubectl, "killed", step))
        _assert_equal(lab, "killed", reference=undisturbed)
    assert len(watch.seen) == 4
    assert watch.most_alive == 1


def test_evicted_then_suspended_and_resumed(lab: Lab, undisturbed: RunObjects) -> None:
    with PodWatch(lab.kubectl, "darkroom.dev/name=moved") as watch:
        lab.kubectl.patch(KIND, "moved", merge={"spec": {"suspend": False}})
        evicted = wait_for_step(lab.kubectl, "moved", 8)
        lab.kubectl.evict(evicted["metadata"]["name"])
        until(
            "a new pod replaces the evicted one",
            lambda: (pod := running_pod(lab.kubectl, "moved")) and pod["metadata"]["uid"] != evicted["metadata"]["uid"],
            timeout=120,
        )
        wait_for_step(lab.kubectl, "moved", 24)
        lab.kubectl.patch(KIND, "moved", merge={"spec": {"suspend": True}})
        suspended = wait_for_phase(lab.kubectl, "moved", "Suspended", timeout=60)
        assert _condition(suspended, "Suspended") == "True"
        until("no pod is left", lambda: not lab.kubectl.list("pods", "darkroom.dev/name=moved"), timeout=60)
        lab.kubectl.patch(KIND, "moved", merge={"spec": {"suspend": False}})
        _assert_equal(lab, "moved", reference=undisturbed)
    assert len(watch.seen) == 3
    assert watch.most_alive == 1


def _condition(status: dict[str, object], kind: str) -> str:
    conditions = status["conditions"]
    assert isinstance(conditions, list)
    return next(condition["status"] for condition in conditions if condition["type"] == kind)
