"""Every way in which a pod ends or does not start, and what the status makes of it."""

from __future__ import annotations

import pytest

from darkroom_api.failures import ADVICE, ExitCode, FailureReason
from dev.cluster.waiting import wait_for
from tests.integration.operator.cluster import PATIENCE, PLAN, Cluster, now, record, take_pod

pytestmark = pytest.mark.usefixtures("operator")


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (ExitCode.DATA, FailureReason.DATASET_REJECTED),
        (ExitCode.NO_INPUT, FailureReason.NOT_FOUND),
        (ExitCode.NO_PERMISSION, FailureReason.ACCESS_DENIED),
        (ExitCode.CONFIG, FailureReason.INVALID_SPEC),
        (ExitCode.OUT_OF_MEMORY, FailureReason.ACCELERATOR_OUT_OF_MEMORY),
        (ExitCode.LOSS_NOT_FINITE, FailureReason.LOSS_NOT_FINITE),
    ],
)
def test_what_a_retry_cannot_mend_fails_at_once(cluster: Cluster, exit_code: ExitCode, reason: FailureReason) -> None:
    cluster.apply("anna", backoffLimit=3)
    with take_pod(cluster, "anna") as pod:
        pod.start()
        pod.end(exit_code)
        status = cluster.wait_phase("anna", "Failed")
    assert status["failure"]["reason"] == reason
    assert status["failure"]["exitCode"] == exit_code
    assert status["failure"]["advice"] == ADVICE[reason]
    assert status["attempts"] == 1
    assert cluster.wait_job_end("anna")["reason"] == "PodFailurePolicy"


@pytest.mark.parametrize(
    ("exit_code", "word", "reason"),
    [
        (ExitCode.UNAVAILABLE, "Error", FailureReason.STORAGE_UNAVAILABLE),
        (ExitCode.SOFTWARE, "Error", FailureReason.INTERNAL_ERROR),
        (137, "OOMKilled", FailureReason.HOST_OUT_OF_MEMORY),
        (139, "Error", FailureReason.INTERNAL_ERROR),
    ],
)
def test_what_a_retry_may_mend_fails_when_the_retries_are_used_up(
    cluster: Cluster, exit_code: int, word: str, reason: FailureReason
) -> None:
    cluster.apply("anna", backoffLimit=0)
    with take_pod(cluster, "anna") as pod:
        pod.start()
        pod.end(exit_code, reason=word)
        status = cluster.wait_phase("anna", "Failed")
    assert status["failure"]["reason"] == reason
    assert cluster.wait_job_end("anna")["reason"] == "BackoffLimitExceeded"


def test_a_deadline_fails_the_run(cluster: Cluster) -> None:
    cluster.apply("anna", activeDeadlineSeconds=1)
    with take_pod(cluster, "anna") as pod:
        pod.start()
        wait_for(
            lambda: "deletionTimestamp" in cluster.pods("anna")[0]["metadata"], "the pod is stopped", timeout=PATIENCE
        )
        pod.end(ExitCode.PREEMPTED)
        pod.vanish()
        status = cluster.wait_phase("anna", "Failed")
    assert status["failure"]["reason"] == FailureReason.DEADLINE_EXCEEDED


def test_an_eviction_costs_no_retry_and_loses_no_checkpoint(cluster: Cluster) -> None:
    cluster.apply("anna", backoffLimit=0, training={"epochs": 2})
    with take_pod(cluster, "anna") as first:
        first.say(plan=PLAN, epoch=2, step=12, checkpoints=[record(1)])
        first.start()
        cluster.wait_status("anna", lambda status: status.get("checkpoints"), "a checkpoint")
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first.name}}
        cluster.call("POST", cluster.path("pods", first.name, "eviction"), eviction)
        cluster.wait_reason("anna", "Stopping")
        first.end(ExitCode.PREEMPTED)
        first.vanish()
        cluster.wait_reason("anna", FailureReason.PREEMPTED)
    assert cluster.status("anna")["failure"]["reason"] == FailureReason.PREEMPTED
    with take_pod(cluster, "anna", besides={first.name}) as second:
        second.say(plan=PLAN, epoch=1, step=8)
        second.start()
        status = cluster.wait_status("anna", lambda status: status["progress"]["step"] == 8, "it goes on")
        assert [entry["epoch"] for entry in status["checkpoints"]] == [1]
        second.succeed()
        status = cluster.wait_phase("anna", "Succeeded")
    assert status["attempts"] == 2
    assert "failure" not in status


@pytest.mark.parametrize(
    ("waiting", "message", "reason", "said"),
    [
        ("ImagePullBackOff", "Back-off pulling image", "ImagePull", "ImagePullBackOff: Back-off pulling image"),
        ("CreateContainerConfigError", 'secret "studio-s3" not found', "SecretNotFound", "Secret 'studio-s3'"),
        (
            "CreateContainerConfigError",
            "couldn't find key AWS_ACCESS_KEY_ID in Secret studio/studio-s3",
            "SecretKeyNotFound",
            "no key 'AWS_ACCESS_KEY_ID'",
        ),
    ],
)
def test_a_container_that_cannot_start_shows_why_and_may_still_start(
    cluster: Cluster, waiting: str, message: str, reason: str, said: str
) -> None:
    cluster.apply("anna")
    with take_pod(cluster, "anna") as pod:
        pod.wait_in(waiting, message)
        ready = cluster.wait_reason("anna", reason)
        assert said in ready["message"]
        assert cluster.status("anna")["phase"] == "Pending"
        assert cluster.condition("anna", "Progressing")["status"] == "False"
        assert cluster.condition("anna", "Stalled") == {}
        pod.start()
        cluster.wait_phase("anna", "Running")
    assert cluster.condition("anna", "Progressing")["status"] == "True"


def test_a_pod_that_no_node_fits_shows_why(cluster: Cluster) -> None:
    cluster.apply("anna")
    pod = wait_for(lambda: cluster.pods("anna"), "a pod", timeout=PATIENCE)[0]["metadata"]["name"]
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "lastTransitionTime": now(),
    }
    body = {"status": {"conditions": [condition]}}
    cluster.call("PATCH", cluster.path("pods", pod, "status"), body, content_type="application/merge-patch+json")
    assert "Insufficient nvidia.com/gpu" in cluster.wait_reason("anna", "Unschedulable")["message"]
    assert cluster.status("anna").get("attempts", 0) == 0
