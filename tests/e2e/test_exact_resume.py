"""Whatever stops a run, it ends with an undisturbed run's weights and losses, bit for bit; never two pods live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.e2e.conftest import Lab
from tests.e2e.kube import Kubectl, Object, PodWatch, until
from tests.e2e.runs import KIND, RunObjects, kill_trainer, running_pod, training, wait_for_phase, wait_for_step

EPOCHS = 3
STEPS_PER_EPOCH = 15
KILLED_AT = (4, 14, 24)


def _let_be(kubectl: Kubectl, name: str) -> None:
    """Do nothing."""


def _kill_three_times(kubectl: Kubectl, name: str) -> None:
    for step in KILLED_AT:
        kill_trainer(wait_for_step(kubectl, name, step))


def _evict_then_suspend_and_resume(kubectl: Kubectl, name: str) -> None:
    evicted = wait_for_step(kubectl, name, 8)
    kubectl.evict(evicted["metadata"]["name"])
    until(
        "a new pod replaces the evicted one",
        lambda: (pod := running_pod(kubectl, name)) and pod["metadata"]["uid"] != evicted["metadata"]["uid"],
        timeout=120,
    )
    wait_for_step(kubectl, name, 24)
    kubectl.patch(KIND, name, merge={"spec": {"suspend": True}})
    suspended = wait_for_phase(kubectl, name, "Suspended", timeout=60)
    conditions = {condition["type"]: condition["status"] for condition in suspended["conditions"]}
    assert conditions["Suspended"] == "True"
    until("no pod is left", lambda: not kubectl.list("pods", f"darkroom.dev/name={name}"), timeout=60)
    kubectl.patch(KIND, name, merge={"spec": {"suspend": False}})


DISTURBANCES: dict[str, Callable[[Kubectl, str], None]] = {
    "undisturbed": _let_be,
    "killed": _kill_three_times,
    "moved": _evict_then_suspend_and_resume,
}
Outcome = tuple[Object, PodWatch]


@pytest.fixture(scope="module")
def outcomes(lab: Lab) -> Iterator[dict[str, Future[Outcome]]]:
    """All runs at once, each with its disturbance: most of the time they wait for pods to start."""
    uri = lab.upload_subject("resume", repeats=4, count=15)
    for name in DISTURBANCES:
        manifest = training(name, dataset=uri, epochs=EPOCHS, batchSize=4)
        manifest["spec"]["checkpoints"] = {"precision": "FP32", "stateEverySeconds": 1}
        manifest["spec"]["samples"] = {"prompts": []}
        manifest["spec"]["backoffLimit"] = 6
        lab.kubectl.apply(manifest)

    def run(name: str) -> Outcome:
        with PodWatch(lab.kubectl, f"darkroom.dev/name={name}") as watch:
            DISTURBANCES[name](lab.kubectl, name)
            return wait_for_phase(lab.kubectl, name, "Succeeded", timeout=480), watch

    with ThreadPoolExecutor() as threads:
        yield {name: threads.submit(run, name) for name in DISTURBANCES}
    lab.kubectl.run("delete", KIND, *DISTURBANCES, "--wait=false")


@pytest.mark.parametrize(("name", "num_pods"), [("killed", 1 + len(KILLED_AT)), ("moved", 3)])
def test_disturbed_run_ends_like_the_undisturbed_one(
    lab: Lab, outcomes: dict[str, Future[Outcome]], name: str, num_pods: int
) -> None:
    reference: RunObjects = lab.objects(outcomes["undisturbed"].result()[0])
    done, watch = outcomes[name].result()
    objects = lab.objects(done)
    losses = reference.losses(EPOCHS)
    assert len(losses) == EPOCHS * STEPS_PER_EPOCH
    assert objects.losses(EPOCHS) == losses
    for epoch in range(1, EPOCHS + 1):
        assert objects.weights(epoch, name) == reference.weights(epoch, "undisturbed")
    assert [checkpoint["epoch"] for checkpoint in done["checkpoints"]] == list(range(1, EPOCHS + 1))
    assert len(watch.seen) == num_pods
    assert watch.most_alive == 1
