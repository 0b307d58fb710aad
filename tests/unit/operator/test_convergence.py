"""Whatever is found, decisions come to rest, never take back an end, and never let two pods write."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom_operator.decide.children import KUEUE_QUEUE
from darkroom_operator.decide.snapshot import CreateJob, PatchJob, Snapshot, Trouble
from darkroom_operator.decide.training import decide
from darkroom_operator.objects import PARENTS
from tests.unit.operator.world import (
    CONFIG,
    NOW,
    apply,
    decided,
    ended,
    job,
    observation,
    pod,
    record,
    result,
    running,
    snapshot,
    status,
    training,
)

ROUNDS = 3
"""Decisions until rest: create; record; and after an end the Job's ttl."""

labels = st.sampled_from([{}, {KUEUE_QUEUE: "gpus"}])
trainings = functools.partial(
    st.builds,
    training,
    labels=labels,
    generation=st.integers(1, 3),
    suspend=st.booleans(),
    backoffLimit=st.sampled_from([0, 3]),
    activeDeadlineSeconds=st.sampled_from([None, 60]),
    ttlSecondsAfterFinished=st.sampled_from([None, 0, 60]),
    dataset=st.sampled_from([{"uri": "s3://studio/anna"}] * 5 + [{"name": "photos"}]),
)
ends = st.sampled_from(
    [(), (("Complete", ""),), (("Suspended", ""),), *[(("Failed", reason),) for reason in
     ("PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded")]]
)  # fmt: skip


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any] | None:
    if draw(st.booleans()):
        return None
    made = job(
        conditions=draw(ends),
        age=draw(st.sampled_from([1, 60])),
        deleting=draw(st.booleans()) and draw(st.booleans()),
        suspend=draw(st.booleans()),
    )
    made["metadata"]["labels"] |= draw(labels)
    return made


@st.composite
def pods(draw: st.DrawFn, name: str) -> dict[str, Any]:
    age = draw(st.integers(1, 59))
    kind = draw(st.sampled_from(["pending", "running", "deleting", "ended", "told"]))
    if kind == "pending":
        return pod(name, phase="Pending", age=age, started=draw(st.booleans()))
    if kind in {"running", "deleting"}:
        return running(name, age=age, deleting=kind == "deleting")
    exit_code = draw(st.sampled_from([0, 65, 70, 75, 137]))
    outcome = {0: "Succeeded", 75: "Preempted"}.get(exit_code, "Failed")
    epochs = draw(st.lists(st.integers(1, 10), unique=True, max_size=3))
    words = result(outcome=outcome, checkpoints=[record(epoch) for epoch in sorted(epochs)]) if kind == "told" else None
    return ended(exit_code, name, result=words, age=age)


@st.composite
def unowned(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A pod with the run's label and no Job: left over, or by somebody else."""
    made = draw(pods(name))
    made["metadata"]["ownerReferences"] = draw(
        st.sampled_from([[], [{"kind": "Job", "name": "other", "uid": "other", "controller": True}]])
    )
    return made


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    present = tuple(draw(pods(name)) for name in draw(st.sampled_from([(), ("a",), ("a", "b")])))
    heard = draw(st.sampled_from([None, "a", "b"]))
    kind = draw(st.sampled_from(PARENTS))
    return snapshot(
        kind,
        training=draw(trainings(st.just(kind))),
        job=draw(jobs()),
        config_map=draw(st.sampled_from([None, {}])),
        pods=present,
        strangers=tuple(draw(unowned(name)) for name in draw(st.sampled_from([(), (), ("o",)]))),
        departed_pods=tuple(draw(pods(name)) for name in draw(st.sampled_from([(), ("z",)]))),
        observation=observation(heard, step=draw(st.integers(0, 100)), epoch=1) if heard else None,
        trouble=draw(st.sampled_from([None] * 6 + [Trouble("JobRefused", "no", is_final=True)])),
    )


def at_rest(case: Snapshot) -> Snapshot:
    for _ in range(ROUNDS):
        case = decided(case)
    return case


@settings(max_examples=300, deadline=None)
@given(snapshots())
def test_decisions_come_to_rest(case: Snapshot) -> None:
    after = at_rest(case)
    assert decide(after, CONFIG, NOW).is_empty


@settings(max_examples=200, deadline=None)
@given(snapshots(), snapshots())
def test_decisions_come_to_rest_after_any_change_too(first: Snapshot, second: Snapshot) -> None:
    told = second.training | {"status": status(at_rest(first))}
    after = at_rest(replace(second, training=told))
    assert decide(after, CONFIG, NOW).is_empty


@settings(max_examples=200, deadline=None)
@given(snapshots(), snapshots())
def test_an_end_is_never_taken_back(first: Snapshot, second: Snapshot) -> None:
    before = status(at_rest(first))
    if before["phase"] not in {"Succeeded", "Failed"}:
        return
    case = replace(second, training=second.training | {"status": before}, trouble=None)
    plan = decide(case, CONFIG, NOW)
    assert not [action for action in plan.actions if isinstance(action, CreateJob)]
    kept = {name: value for name, value in status(apply(case, plan)).items() if name != "observedGeneration"}
    assert kept == {name: value for name, value in before.items() if name != "observedGeneration"}


@settings(max_examples=300, deadline=None)
@given(snapshots())
def test_no_job_is_made_beside_a_pod_that_may_still_write(case: Snapshot) -> None:
    plan = decide(case, CONFIG, NOW)
    if any(isinstance(action, CreateJob) for action in plan.actions):
        phases = {pod["status"]["phase"] for pod in (*case.pods, *case.strangers)}
        assert phases <= {"Succeeded", "Failed"}


@settings(max_examples=200, deadline=None)
@given(snapshots())
def test_kueue_keeps_its_jobs_suspension(case: Snapshot) -> None:
    if case.job and KUEUE_QUEUE in case.job["metadata"]["labels"]:
        patches = [action for action in decide(case, CONFIG, NOW).actions if isinstance(action, PatchJob)]
        assert not [patch for patch in patches if "suspend" in patch.spec]


@settings(max_examples=200, deadline=None)
@given(snapshots(), snapshots())
def test_a_recorded_checkpoint_stays(first: Snapshot, second: Snapshot) -> None:
    before = status(at_rest(first))
    after = status(at_rest(replace(second, training=second.training | {"status": before})))
    epochs = {entry["epoch"] for entry in after.get("checkpoints", ())}
    assert epochs >= {entry["epoch"] for entry in before.get("checkpoints", ())}
