"""Every phase, every transition, and what each asks to be written."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from darkroom_api.failures import FailureReason
from darkroom_operator.decide.children import KUEUE_QUEUE
from darkroom_operator.decide.snapshot import CreateConfigMap, CreateJob, DeleteJob, PatchJob, Snapshot, Trouble
from darkroom_operator.decide.training import decide
from tests.unit.operator.world import (
    CHILD,
    CONFIG,
    JOB_UID,
    NOW,
    condition,
    decided,
    ended,
    job,
    pod,
    record,
    result,
    running,
    snapshot,
    stamp,
    status,
    training,
)

COMPLETE = (("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached"))
QUEUED = {KUEUE_QUEUE: "gpus"}


def kueue_job(**values: Any) -> dict[str, Any]:
    made = job(**values)
    made["metadata"]["labels"] |= QUEUED
    return made


def ending(exit_code: int) -> dict[str, Any]:
    """A pod whose container has ended, while the kubelet has not drawn the conclusion yet."""
    made = ended(exit_code)
    made["status"]["phase"] = "Running"
    return made


STUCK = pod(
    phase="Pending",
    started=False,
    conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}],
)
PULLING = pod(phase="Pending", state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}})
SECRET = pod(
    phase="Pending", state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}
)


@pytest.mark.parametrize(
    ("case", "phase", "reason"),
    [
        (snapshot(), "Pending", "Creating"),
        (snapshot(training=training(suspend=True)), "Suspended", "Suspended"),
        (snapshot(training=training(dataset={"name": "photos"})), "Waiting", "ReferencesNotResolved"),
        (snapshot(job=job(age=5)), "Pending", "Starting"),
        (snapshot(job=job(age=300)), "Pending", "PodNotCreated"),
        (snapshot(job=job(), pods=(pod(phase="Pending"),)), "Pending", "Starting"),
        (snapshot(job=job(), pods=(STUCK,)), "Pending", "Unschedulable"),
        (snapshot(job=job(), pods=(PULLING,)), "Pending", "ImagePull"),
        (snapshot(job=job(), pods=(SECRET,)), "Pending", "SecretNotFound"),
        (snapshot(job=job(), pods=(running(),)), "Running", "Running"),
        (snapshot(job=job(), pods=(running(deleting=True),)), "Running", "Stopping"),
        (snapshot(job=job(), pods=(ended(70),)), "Pending", "InternalError"),
        (snapshot(job=job(), departed_pods=(running(),)), "Pending", "Preempted"),
        (snapshot(job=job(), pods=(ended(70), running("pod-b", age=20))), "Running", "Running"),
        (snapshot(job=job(), pods=(ended(0),)), "Running", "Finishing"),
        (snapshot(job=job(), pods=(ending(0),)), "Running", "Finishing"),
        (snapshot(job=job(), pods=(ending(70),)), "Running", "Finishing"),
        (snapshot(job=job(), pods=(ended(65),)), "Running", "Finishing"),
        (snapshot(training=training(suspend=True), job=job(), pods=(ending(75),)), "Running", "Suspending"),
        (snapshot(strangers=(running("orphan"),)), "Pending", "OrphanedPod"),
        (snapshot(strangers=(ended(0, "orphan"),)), "Pending", "Creating"),
        (snapshot(job=job(suspend=True)), "Pending", "Resuming"),
        (snapshot(job=kueue_job(suspend=True)), "Queued", "Queued"),
        (snapshot(job=job(deleting=True), pods=(running(deleting=True),)), "Pending", "JobDeleting"),
        (snapshot(pods=(running(deleting=True),)), "Pending", "PreviousPodStopping"),
        (snapshot(training=training(suspend=True), job=job(), pods=(running(),)), "Running", "Suspending"),
        (
            snapshot(training=training(suspend=True), job=job(suspend=True, conditions=(("Suspended", ""),))),
            "Suspended",
            "Suspended",
        ),
        (
            snapshot(
                training=training(suspend=True),
                job=job(suspend=True, conditions=(("Suspended", ""),)),
                pods=(running(deleting=True),),
            ),
            "Running",
            "Suspending",
        ),
        (snapshot(job=job(conditions=COMPLETE), pods=(ended(0, result=result()),)), "Succeeded", "Succeeded"),
        (snapshot(job=job(conditions=COMPLETE)), "Succeeded", "Succeeded"),
        (snapshot(departed_pods=(ended(0, result=result()),)), "Succeeded", "Succeeded"),
        (
            snapshot(job=job(conditions=(("Failed", "PodFailurePolicy"),)), pods=(ended(66),)),
            "Failed",
            FailureReason.NOT_FOUND,
        ),
        (snapshot(job=job(conditions=(("Failed", "DeadlineExceeded"),))), "Failed", FailureReason.DEADLINE_EXCEEDED),
        (
            snapshot(job=job(conditions=(("Failed", "BackoffLimitExceeded"),))),
            "Failed",
            FailureReason.INTERNAL_ERROR,
        ),
        (snapshot(trouble=Trouble("JobRefused", "no", is_final=True)), "Failed", FailureReason.INVALID_SPEC),
        (snapshot(trouble=Trouble("JobNotCreated", "quota", is_final=False)), "Pending", "JobNotCreated"),
    ],
)  # fmt: skip
def test_where_a_run_stands(case: Snapshot, phase: str, reason: str) -> None:
    after = decided(case)
    assert status(after)["phase"] == phase
    ready = condition(after, "Ready")
    assert ready["reason"] == reason
    assert ready["status"] == ("True" if phase == "Succeeded" else "False")
    assert (condition(after, "Stalled") != {}) == (phase == "Failed")
    assert condition(after, "Complete")["status"] == ("True" if phase == "Succeeded" else "False")
    assert condition(after, "Failed")["status"] == ("True" if phase == "Failed" else "False")
    assert condition(after, "Suspended")["status"] == ("True" if phase == "Suspended" else "False")
    assert status(after)["observedGeneration"] == 1


def test_a_new_run_gets_its_plan_before_its_job() -> None:
    plan = decide(snapshot(), CONFIG, NOW)
    assert [type(action) for action in plan.actions] == [CreateConfigMap, CreateJob]


def test_a_lost_plan_is_made_again_while_the_run_goes_on() -> None:
    plan = decide(snapshot(job=job(), pods=(running(),)), CONFIG, NOW)
    assert [type(action) for action in plan.actions] == [CreateConfigMap]


@pytest.mark.parametrize(
    ("values", "present", "changes"),
    [
        ({"suspend": True}, job(), {"suspend": True}),
        ({}, job(suspend=True), {"suspend": False}),
        ({"backoffLimit": 7}, job(), {"backoffLimit": 7}),
        ({"activeDeadlineSeconds": 60}, job(), {"activeDeadlineSeconds": 60}),
        ({}, job(activeDeadlineSeconds=60), {"activeDeadlineSeconds": None}),
        ({"ttlSecondsAfterFinished": 60}, job(), None),
        ({}, kueue_job(suspend=True), None),
        ({"backoffLimit": 7}, kueue_job(suspend=True), {"backoffLimit": 7}),
    ],
)
def test_what_follows_onto_a_present_job(
    values: dict[str, Any], present: dict[str, Any], changes: dict[str, Any] | None
) -> None:
    plan = decide(snapshot(training=training(**values), job=present, config_map={}), CONFIG, NOW)
    assert plan.actions == ((PatchJob(CHILD, changes),) if changes else ())


def test_a_kueue_run_is_suspended_by_deleting_its_job() -> None:
    plan = decide(snapshot(training=training(suspend=True), job=kueue_job(), config_map={}), CONFIG, NOW)
    assert plan.actions == (DeleteJob(CHILD, JOB_UID),)


def test_the_ttl_comes_onto_the_job_once_its_end_is_recorded() -> None:
    case = snapshot(
        training=training(ttlSecondsAfterFinished=60), job=job(conditions=COMPLETE), pods=(ended(0, result=result()),)
    )
    first = decide(case, CONFIG, NOW)
    assert first.actions == ()
    second = decide(decided(case), CONFIG, NOW)
    assert second.actions == (PatchJob(CHILD, {"ttlSecondsAfterFinished": 60}),)


def test_a_jobs_end_waits_a_moment_for_the_pods_last_words() -> None:
    fresh = job(conditions=COMPLETE)
    fresh["status"]["completionTime"] = stamp(-1)
    case = decided(snapshot(job=job(), pods=(running(),)))
    case = replace(case, job=fresh)
    waiting = decide(case, CONFIG, NOW)
    assert waiting.requeue_after == pytest.approx(4)
    assert status(decided(case))["phase"] == "Running"
    assert status(decided(case, now=NOW + timedelta(seconds=5)))["phase"] == "Succeeded"


def test_a_run_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    going = training()
    going["metadata"]["deletionTimestamp"] = stamp()
    assert decide(snapshot(training=going), CONFIG, NOW).is_empty


def test_a_spec_that_only_the_models_refuse_fails_with_path_given_and_allowed() -> None:
    wrong = training()
    wrong["spec"]["output"]["uri"] = "s3://studio/../secrets"
    after = decided(snapshot(training=wrong))
    failure = status(after)["failure"]
    assert failure["reason"] == FailureReason.INVALID_SPEC
    assert "spec.output.uri" in failure["message"]
    assert "'s3://studio/../secrets'" in failure["message"]
    assert decide(replace(after, job=job()), CONFIG, NOW).actions == (DeleteJob(CHILD, JOB_UID),)


def test_fields_of_a_newer_release_are_ignored() -> None:
    newer = training()
    newer["spec"] |= {"future": {"x": 1}, "compute": newer["spec"]["compute"] | {"gpuSharing": "MPS"}}
    newer["spec"]["training"]["optimizer"]["newKnob"] = 0.5
    assert decide(snapshot(training=newer), CONFIG, NOW).actions == decide(snapshot(), CONFIG, NOW).actions
    assert newer["spec"]["compute"]["gpuSharing"] == "MPS"  # what the cache holds is left as it is


@pytest.mark.parametrize("is_there", [True, False])
def test_a_spec_that_cannot_be_read_any_more_ends_no_run(is_there: bool) -> None:
    before = decided(snapshot(job=job(), pods=(running(),)))
    newer = before.training | {"spec": before.training["spec"] | {"network": {"type": "Future"}}}
    case = replace(before, training=newer, job=before.job if is_there else None)
    assert decide(case, CONFIG, NOW).actions == ()
    after = decided(case)
    assert status(after)["phase"] == "Running"
    assert condition(after, "Ready")["reason"] == FailureReason.INVALID_SPEC
    assert condition(after, "Progressing")["status"] == "False"
    assert condition(after, "Stalled") == {}
    assert "spec.network.type" in condition(after, "Ready")["message"]


@pytest.mark.parametrize("ending", [COMPLETE, (("Failed", "PodFailurePolicy"),)])
def test_an_end_is_latched_whatever_happens_to_the_job(ending: tuple[tuple[str, str], ...]) -> None:
    over = decided(snapshot(job=job(conditions=ending), pods=(ended(0 if ending is COMPLETE else 65),)))
    later = replace(over, job=None, pods=(), training=over.training | {"metadata": training(generation=2)["metadata"]})
    after = decided(later)
    assert decide(later, CONFIG, NOW).actions == ()
    assert status(after) == status(over) | {"observedGeneration": 2}


def test_transition_times_change_only_when_a_status_flips() -> None:
    before = decided(snapshot(job=job(age=5)))
    after = decided(replace(before, pods=(running(),)), now=NOW + timedelta(seconds=60))
    assert condition(after, "Ready")["reason"] == "Running"
    assert condition(after, "Ready")["lastTransitionTime"] == condition(before, "Ready")["lastTransitionTime"]
    over = decided(
        replace(after, job=job(conditions=COMPLETE), pods=(ended(0, result=result(checkpoints=[record(10)])),)),
        now=NOW + timedelta(seconds=90),
    )
    assert condition(over, "Ready")["lastTransitionTime"] == stamp(90)


def test_no_other_attempt_is_promised_where_none_follows() -> None:
    never = decided(snapshot(job=job(), pods=(ended(65),)))
    assert "next" not in condition(never, "Ready")["message"]
    assert status(never)["failure"]["reason"] == FailureReason.DATASET_REJECTED
    again = decided(snapshot(job=job(), pods=(ended(70),)))
    assert "while backoffLimit allows" in condition(again, "Ready")["message"]


def dead(name: str = "pod-a") -> dict[str, Any]:
    made = running(name, deleting=True)
    made["metadata"]["deletionTimestamp"] = stamp(-10)
    return made


CREATING = pod(phase="Pending", state={"waiting": {"reason": "ContainerCreating"}}, age=1)
PREPARED = pod(
    phase="Pending",
    state={"waiting": {"reason": "ContainerCreating"}},
    age=1,
    conditions=[{"type": "PodReadyToStartContainers", "status": "True"}],
)


@pytest.mark.parametrize(
    ("case", "bound", "reason", "words"),
    [
        (snapshot(job=job(age=1)), 119, "PodNotCreated", f"kubectl describe job {CHILD}"),
        (snapshot(job=job(age=9000), pods=(ended(70),)), 720 - 31, "PodNotCreated", f"describe job {CHILD}"),
        (snapshot(job=job(), pods=(CREATING,)), 120, "ContainerNotCreated", "kubectl describe pod pod-a"),
        (snapshot(job=job(), pods=(PREPARED,)), 1800, "ContainerNotCreated", "image is large"),
        (snapshot(job=job(), pods=(dead(),)), 290, "PodNotEnding", "kubectl describe pod pod-a"),
        (snapshot(pods=(dead(),)), 290, "PodNotEnding", "--force"),
    ],
)
def test_no_wait_looks_healthy_for_ever(case: Snapshot, bound: float, reason: str, words: str) -> None:
    before, after = NOW + timedelta(seconds=bound - 1), NOW + timedelta(seconds=bound)
    assert condition(decided(case, now=before), "Progressing")["status"] == "True"
    assert decide(case, CONFIG, before).requeue_after == pytest.approx(1)
    late = decided(case, now=after)
    assert condition(late, "Progressing")["status"] == "False"
    assert condition(late, "Ready")["reason"] == reason
    assert words in condition(late, "Ready")["message"]
    assert condition(late, "Stalled") == {}
    assert decide(late, CONFIG, NOW + timedelta(hours=9)).status_patch == {}


def test_a_container_that_waits_for_a_ca_bundle_names_its_config_map() -> None:
    bundled = training(storage={"caBundle": {"configMapName": "studio-ca", "key": "ca.crt"}})
    after = decided(snapshot(training=bundled, job=job(), pods=(CREATING,)), now=NOW + timedelta(seconds=125))
    assert "'studio-ca'" in condition(after, "Progressing")["message"]


def test_an_event_has_the_same_cause_when_the_decision_is_made_again() -> None:
    case = snapshot(job=job(), pods=(running(),), config_map={})
    moved = training()
    moved["metadata"]["resourceVersion"] = "2"
    first, again = decide(case, CONFIG, NOW), decide(replace(case, training=moved), CONFIG, NOW)
    assert first.events == again.events
    between = decided(replace(decided(case), pods=(ended(70),)))
    second = decide(replace(between, pods=(ended(70), running("pod-b", age=9))), CONFIG, NOW)
    assert [note.reason for note in second.events] == ["Running"]
    assert second.events[0].cause != first.events[0].cause


def test_events_come_on_transitions_only() -> None:
    case = snapshot(job=job(), pods=(running(),), config_map={})
    first = decide(case, CONFIG, NOW)
    assert [(note.kind, note.reason) for note in first.events] == [("Normal", "Running")]
    after = decided(case)
    assert decide(after, CONFIG, NOW).events == ()
    stuck = decide(replace(after, pods=(PULLING,)), CONFIG, NOW)
    assert [(note.kind, note.reason) for note in stuck.events] == [("Warning", "ImagePull")]


def test_a_status_that_others_broke_keeps_what_can_be_read() -> None:
    broken = training(status={"phase": "Succeeded", "attempts": "many", "conditions": [{"type": 5}], "future": 1})
    plan = decide(snapshot(training=broken), CONFIG, NOW)
    assert plan.actions == ()
    assert "phase" not in plan.status_patch


@pytest.mark.parametrize(("generation", "phase", "verdict"), [
    (2, "Running", "InProgress"), (1, "Running", "InProgress"), (1, "Succeeded", "Current"), (1, "Failed", "Failed"),
    (2, "Succeeded", "InProgress"), (1, "Waiting", "InProgress"), (1, "Suspended", "InProgress"),
])  # fmt: skip
def test_what_kstatus_makes_of_it(generation: int, phase: str, verdict: str) -> None:
    cases = {
        "Running": snapshot(job=job(), pods=(running(),)),
        "Succeeded": snapshot(job=job(conditions=COMPLETE)),
        "Failed": snapshot(job=job(conditions=(("Failed", "PodFailurePolicy"),)), pods=(ended(65),)),
        "Waiting": snapshot(training=training(dataset={"name": "photos"})),
        "Suspended": snapshot(training=training(suspend=True)),
    }
    after = decided(cases[phase])
    assert status(after)["phase"] == phase
    assert kstatus(status(after), generation=generation) == verdict


def kstatus(found: dict[str, Any], *, generation: int) -> str:
    """The rules of cli-utils 0.37 for a custom resource."""
    held = {entry["type"]: entry["status"] for entry in found["conditions"]}
    if found["observedGeneration"] != generation or held.get("Reconciling") == "True":
        return "InProgress"
    if held.get("Stalled") == "True":
        return "Failed"
    return "Current" if held.get("Ready", "True") == "True" else "InProgress"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ([("AWS_ACCESS_KEY_ID", "s3"), ("AWS_SECRET_ACCESS_KEY", "s3")], "storage.credentials.secretName"),
        ([("AWS_ACCESS_KEY_ID", "other"), ("WANDB_API_KEY", "s3")], "the secretName that names it"),
    ],
)
def test_a_missing_secret_is_told_with_its_keys(variables: list[tuple[str, str]], expected: str) -> None:
    env = [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for key, secret in variables]
    env.append({"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "MAYBE", "optional": True}}})
    waiting = {**SECRET, "spec": {"containers": [{"name": "trainer", "env": env}]}}
    message = condition(decided(snapshot(job=job(), pods=(waiting,))), "Ready")["message"]
    keys = " and ".join(key for key, secret in variables if secret == "s3")
    assert f"create it with {keys}, or correct {expected}" in message
