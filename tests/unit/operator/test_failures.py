"""The taxonomy of failures."""

from __future__ import annotations

from typing import Any

import pytest

from darkroom_api.failures import ADVICE, ExitCode, FailureReason
from darkroom_api.result import RunFailure
from darkroom_operator.decide.failures import of_attempt
from darkroom_operator.decide.pods import attempts
from tests.unit.operator.world import decided, ended, job, result, running, snapshot, status, training

EVICTED = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicted"}]


def evicted(message: str) -> dict[str, Any]:
    """A pod that a kubelet has thrown out."""
    made = ended(137)
    made["status"] |= {"reason": "Evicted", "message": message}
    return made


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (ended(65), FailureReason.DATASET_REJECTED),
        (ended(66), FailureReason.NOT_FOUND),
        (ended(69), FailureReason.STORAGE_UNAVAILABLE),
        (ended(70), FailureReason.INTERNAL_ERROR),
        (ended(75), FailureReason.PREEMPTED),
        (ended(77), FailureReason.ACCESS_DENIED),
        (ended(78), FailureReason.INVALID_SPEC),
        (ended(80), FailureReason.ACCELERATOR_OUT_OF_MEMORY),
        (ended(81), FailureReason.LOSS_NOT_FINITE),
        (ended(1), FailureReason.INTERNAL_ERROR),
        (ended(137), FailureReason.INTERNAL_ERROR),
        (ended(137, reason="OOMKilled"), FailureReason.HOST_OUT_OF_MEMORY),
        (ended(137, conditions=EVICTED), FailureReason.PREEMPTED),
        (ended(75, conditions=EVICTED), FailureReason.PREEMPTED),
        (evicted('Usage of EmptyDir volume "work" exceeds the limit "1Gi". '), FailureReason.SCRATCH_FULL),
        (evicted('Container trainer exceeded its local ephemeral storage limit "1Gi". '), FailureReason.SCRATCH_FULL),
        (evicted("The node was low on resource: ephemeral-storage. "), FailureReason.PREEMPTED),
    ],
)
def test_each_end_has_a_reason(pod: dict[str, Any], reason: FailureReason) -> None:
    failure = of_attempt(attempts(snapshot(pods=(pod,)))[0])
    assert failure
    assert failure.reason == reason
    assert failure.advice == ADVICE[reason]
    assert failure.pod == "pod-a"


def test_success_is_no_failure_and_neither_is_going_on() -> None:
    assert of_attempt(attempts(snapshot(pods=(ended(0),)))[0]) is None
    assert of_attempt(attempts(snapshot(pods=(running(),)))[0]) is None


@pytest.mark.parametrize("last", [ended(75), ended(137, conditions=EVICTED), evicted("The node was low on memory.")])
def test_no_final_failure_promises_to_go_on(last: dict[str, Any]) -> None:
    failed = job(conditions=(("Failed", "BackoffLimitExceeded"),))
    failure = status(decided(snapshot(job=failed, pods=(last,))))["failure"]
    assert failure["reason"] == FailureReason.INTERNAL_ERROR
    assert "no retry was left" in failure["message"]
    assert "higher backoffLimit" in failure["advice"]
    preempted = status(decided(snapshot(job=job(), pods=(last,))))
    assert preempted["failure"]["reason"] == FailureReason.PREEMPTED
    later = snapshot(training=training(status=preempted), job=failed)
    assert status(decided(later))["failure"]["reason"] == FailureReason.INTERNAL_ERROR


def test_the_trainers_own_words_go_first() -> None:
    told = RunFailure(reason=FailureReason.MODEL_REJECTED, message="is SDXL", advice="Give SD 1.5.")
    pod = ended(65, result=result(outcome="Failed", failure=told))
    failure = of_attempt(attempts(snapshot(pods=(pod,)))[0])
    assert failure
    assert (failure.reason, failure.message, failure.advice) == (told.reason, told.message, told.advice)


def test_the_jobs_words_are_read_when_the_pod_is_gone() -> None:
    failed = job(conditions=(("Failed", "PodFailurePolicy"),))
    message = f"Container trainer for pod studio/pod-a failed with exit code {ExitCode.NO_PERMISSION} matching FailJob"
    failed["status"]["conditions"][0]["message"] = message
    failure = status(decided(snapshot(job=failed)))["failure"]
    assert (failure["reason"], failure["exitCode"], failure["pod"]) == ("AccessDenied", 77, "pod-a")
