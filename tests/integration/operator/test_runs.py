"""Runs from beginning to end against a real API server; the test plays the kubelet."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from darkroom_api.failures import ExitCode, FailureReason
from darkroom_api.kinds import TRAININGS, TrainingKind
from darkroom_api.plan import RunPlan
from darkroom_api.result import RunFailure, RunResult
from dev.cluster.waiting import wait_for
from tests.integration.operator.cluster import PATIENCE, PLAN, Cluster, record, take_pod
from tests.integration.operator.process import OperatorProcess

pytestmark = pytest.mark.usefixtures("operator")


EVERY_KIND = pytest.mark.parametrize("kind", TRAININGS, ids=lambda kind: kind.name)


@EVERY_KIND
def test_a_run_goes_from_apply_to_success(cluster: Cluster, kind: TrainingKind) -> None:
    cluster = cluster.of(kind)
    cluster.apply("anna", training={"epochs": 2}, samples={"prompts": ["a"], "seeds": [7]})
    with take_pod(cluster, "anna") as pod:
        config_map = cluster.get("configmaps", f"anna-{pod.run}")
        assert config_map
        assert config_map["immutable"]
        plan = RunPlan.model_validate_json(config_map["data"]["plan.json"])
        assert plan.uid == cluster.training("anna")["metadata"]["uid"]
        assert type(plan.spec) is kind.spec
        cluster.wait_phase("anna", "Pending")

        pod.say(plan=PLAN, epoch=1, step=3, loss=0.5, learning_rate=1e-4, steps_per_second=2.0)
        pod.start()
        status = cluster.wait_status("anna", lambda now: now.get("progress", {}).get("step") == 3, "step 3")
        assert status["phase"] == "Running"
        assert status["progress"] | {"lastUpdatedTime": ""} == {
            "stage": "Training",
            "epoch": 1,
            "step": 3,
            "totalSteps": 20,
            "percentage": 15,
            "stepsPerSecond": 2.0,
            "loss": 0.5,
            "learningRate": 1e-4,
            "lastUpdatedTime": "",
        }
        assert status["plan"]["stepsPerEpoch"] == 10
        assert status["attempts"] == 1

        pod.say(plan=PLAN, epoch=2, step=12, checkpoints=[record(1)])
        status = cluster.wait_status("anna", lambda now: now.get("checkpoints"), "a checkpoint")
        prefix = f"s3://studio/results/anna-{pod.run}"
        assert status["output"] == prefix
        assert status["checkpoints"] == [
            {
                "epoch": 1,
                "step": 10,
                "uri": f"{prefix}/checkpoints/epoch-000001/anna-000001.safetensors",
                "sha256": f"{1:064x}",
                "sizeBytes": 1001,
                "samples": [f"{prefix}/samples/epoch-000001/p0-s7.png"],
            }
        ]
        pod.succeed(checkpoints=[record(2)])  # the message had no room for the first
        status = cluster.wait_phase("anna", "Succeeded")
    assert [entry["epoch"] for entry in status["checkpoints"]] == [1, 2]
    assert status["progress"]["percentage"] == 100
    assert status["startTime"] <= status["completionTime"]
    assert "failure" not in status
    assert {entry["type"]: entry["status"] for entry in status["conditions"]} == {
        "Ready": "True",
        "Complete": "True",
        "Failed": "False",
        "Suspended": "False",
        "Progressing": "False",
        "ReferencesResolved": "True",
    }


def test_trainings_of_all_kinds_may_have_one_name(cluster: Cluster) -> None:
    clusters = [cluster.of(kind) for kind in TRAININGS]
    for each in clusters:
        each.apply("anna", training={"epochs": 2})
    jobs = [each.wait(functools.partial(each.job, "anna"), "anna", "the Job") for each in clusters]
    assert len({job["metadata"]["name"] for job in jobs}) == len(clusters)
    first, *others = clusters
    with take_pod(first, "anna") as pod:
        pod.start()
        first.wait_phase("anna", "Running")
        pod.succeed()
        first.wait_phase("anna", "Succeeded")
    for each in others:
        each.change("anna", suspend=True)
        each.wait_phase("anna", "Suspended")
    assert first.status("anna")["phase"] == "Succeeded"


def test_suspension_stops_the_pod_and_resuming_starts_another(cluster: Cluster) -> None:
    cluster.apply("anna", training={"epochs": 2})
    with take_pod(cluster, "anna") as first:
        first.say(plan=PLAN, epoch=1, step=5)
        first.start()
        cluster.wait_phase("anna", "Running")
        cluster.change("anna", suspend=True)
        wait_for(
            lambda: "deletionTimestamp" in cluster.pods("anna")[0]["metadata"],
            "the pod is asked to stop",
            timeout=PATIENCE,
        )
        assert cluster.wait_reason("anna", "Suspending")["status"] == "False"
        first.end(ExitCode.PREEMPTED, RunResult(run=first.run, outcome="Preempted", step=7, epoch=0))
        first.vanish()
    status = cluster.wait_phase("anna", "Suspended")
    assert cluster.condition("anna", "Suspended")["status"] == "True"
    assert status["progress"]["step"] == 7
    assert "failure" not in status
    cluster.change("anna", suspend=False)
    with take_pod(cluster, "anna", besides={first.name}) as second:
        second.start()
        cluster.wait_phase("anna", "Running")
        second.succeed()
        status = cluster.wait_phase("anna", "Succeeded")
    assert status["attempts"] == 2


def test_a_run_that_starts_suspended_has_no_job(cluster: Cluster) -> None:
    cluster.apply("anna", suspend=True)
    cluster.wait_phase("anna", "Suspended")
    assert cluster.list_all("jobs") == []
    assert cluster.list_all("configmaps", "darkroom.dev/run") == []


def test_mutable_fields_follow_onto_the_job(cluster: Cluster) -> None:
    cluster.apply("anna")
    wait_for(lambda: cluster.job("anna"), "the Job", timeout=PATIENCE)
    cluster.change("anna", backoffLimit=7, activeDeadlineSeconds=900)
    wait_for(lambda: (cluster.job("anna") or {})["spec"]["backoffLimit"] == 7, "backoffLimit", timeout=PATIENCE)
    wait_for(
        lambda: (cluster.job("anna") or {})["spec"].get("activeDeadlineSeconds") == 900, "deadline", timeout=PATIENCE
    )
    cluster.change("anna", activeDeadlineSeconds=None)
    wait_for(
        lambda: "activeDeadlineSeconds" not in (cluster.job("anna") or {})["spec"], "no deadline", timeout=PATIENCE
    )


@EVERY_KIND
def test_deleting_the_training_deletes_all_it_made(cluster: Cluster, kind: TrainingKind) -> None:
    cluster = cluster.of(kind)
    cluster.apply("anna")
    take_pod(cluster, "anna")
    job = f"anna-{cluster.run('anna')}"
    pod = cluster.pods("anna")[0]["metadata"]["name"]
    cluster.delete(kind.plural, "anna")
    wait_for(
        lambda: "deletionTimestamp" in (cluster.get("pods", pod) or {"metadata": "deletionTimestamp"})["metadata"],
        "pod stops",
        timeout=PATIENCE,
    )
    cluster.delete("pods", pod, grace=0)
    wait_for(
        lambda: cluster.get("jobs", job) is None and cluster.get("configmaps", job) is None,
        "all gone",
        timeout=PATIENCE,
    )


def test_a_job_that_somebody_deletes_is_made_again_when_its_pod_has_ended(cluster: Cluster) -> None:
    cluster.apply("anna")
    with take_pod(cluster, "anna") as pod:
        pod.start()
        cluster.wait_phase("anna", "Running")
        before = cluster.job("anna")
        assert before
        cluster.delete("jobs", before["metadata"]["name"])
        cluster.wait_reason("anna", "PreviousPodStopping")
        assert cluster.job("anna") is None
        pod.vanish()
    after = wait_for(lambda: cluster.job("anna"), "a new Job", timeout=PATIENCE)
    assert after["metadata"]["name"] == before["metadata"]["name"]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]


def test_a_kueue_run_is_suspended_by_deleting_its_job(cluster: Cluster) -> None:
    cluster.apply("anna", labels={"kueue.x-k8s.io/queue-name": "gpus"})
    job = wait_for(lambda: cluster.job("anna"), "the Job", timeout=PATIENCE)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    held = {"spec": {"suspend": True}}  # as Kueue does
    cluster.call(
        "PATCH", cluster.path("jobs", job["metadata"]["name"]), held, content_type="application/merge-patch+json"
    )
    cluster.wait_phase("anna", "Queued")
    assert (cluster.job("anna") or {})["spec"]["suspend"] is True
    cluster.change("anna", suspend=True)
    wait_for(lambda: cluster.job("anna") is None, "the Job is deleted", timeout=PATIENCE)
    cluster.wait_phase("anna", "Suspended")
    cluster.change("anna", suspend=False)
    wait_for(lambda: cluster.job("anna"), "the Job is made again", timeout=PATIENCE)


def test_a_dataset_by_name_waits_and_says_so(cluster: Cluster) -> None:
    cluster.apply("anna", dataset={"name": "photos"})
    cluster.wait_phase("anna", "Waiting")
    resolved = cluster.condition("anna", "ReferencesResolved")
    assert resolved["status"] == "False"
    assert "TrainingDataset 'photos'" in resolved["message"]
    assert "spec.dataset.uri" in resolved["message"]
    assert cluster.list_all("jobs") == []


def test_a_job_that_the_server_refuses_fails_the_run_with_its_words(cluster: Cluster) -> None:
    cluster.apply("anna", compute={"resources": {"requests": {"cpu": "many"}}})
    status = cluster.wait_phase("anna", "Failed")
    assert status["failure"]["reason"] == FailureReason.INVALID_SPEC
    assert "many" in json.dumps(status["failure"]) or "quantit" in status["failure"]["message"]


def test_a_report_of_another_run_or_too_large_is_ignored(cluster: Cluster, operator: OperatorProcess) -> None:
    cluster.apply("anna", training={"epochs": 2})
    with take_pod(cluster, "anna") as pod:
        pod.say(plan=PLAN, epoch=1, step=10**17)
        bodies = {"insane": pod.body, "oversized": b"x" * 300_000, "invalid": b"[]"}
        pod.say(run="0000000000", step=99)
        bodies["foreign"] = pod.body
        pod.start()
        cluster.wait_phase("anna", "Running")
        for result, body in bodies.items():
            before = operator.polls(result)
            pod.body = body
            cluster.wait(lambda: operator.polls(result) > before, "anna", f"a poll that ends as {result}")  # noqa: B023
        assert "progress" not in cluster.status("anna")
        pod.say(plan=PLAN, epoch=1, step=4)
        status = cluster.wait_status("anna", lambda now: now.get("progress"), "progress")
        assert status["progress"]["step"] == 4


def test_a_pod_that_outlives_its_job_has_no_second_beside_it(cluster: Cluster) -> None:
    cluster.apply("anna")
    with take_pod(cluster, "anna") as pod:
        pod.start()
        cluster.wait_phase("anna", "Running")
        orphan: Any = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Orphan"}
        cluster.call("DELETE", cluster.path("jobs", f"anna-{pod.run}"), orphan)
        message = cluster.wait_reason("anna", "OrphanedPod")["message"]
        assert f"kubectl delete pod {pod.name}" in message
        assert cluster.job("anna") is None
        assert [item["metadata"]["name"] for item in cluster.pods("anna")] == [pod.name]
        pod.vanish()
    cluster.wait(lambda: cluster.job("anna"), "anna", "a new Job")


def test_a_trainers_own_words_end_up_in_the_status(cluster: Cluster) -> None:
    cluster.apply("anna")
    with take_pod(cluster, "anna") as pod:
        pod.start()
        failure = RunFailure(
            reason=FailureReason.MODEL_REJECTED, message="base.safetensors is SDXL", advice="Give an SD 1.5 file."
        )
        pod.end(ExitCode.DATA, RunResult(run=pod.run, outcome="Failed", failure=failure))
        status = cluster.wait_phase("anna", "Failed")
    assert status["failure"] == {
        "reason": "ModelRejected",
        "message": "base.safetensors is SDXL",
        "advice": "Give an SD 1.5 file.",
        "exitCode": 65,
        "pod": pod.name,
    }
    stalled = cluster.condition("anna", "Stalled")
    assert stalled["status"] == "True"
    assert "Give an SD 1.5 file." in stalled["message"]
    assert cluster.condition("anna", "Ready")["status"] == "False"
