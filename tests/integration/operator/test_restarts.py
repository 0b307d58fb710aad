"""What an operator that was away makes of what it finds."""

from __future__ import annotations

from darkroom_api.failures import ExitCode, FailureReason
from dev.cluster.waiting import wait_for
from tests.integration.operator.cluster import PATIENCE, Cluster, record, take_pod
from tests.integration.operator.process import OperatorProcess


def test_the_ttl_deletes_the_finished_job_and_nothing_brings_it_back(
    cluster: Cluster, own_operator: OperatorProcess
) -> None:
    cluster.apply("anna", training={"epochs": 2})
    with take_pod(cluster, "anna") as pod:
        pod.start()
        cluster.wait_phase("anna", "Running")
        pod.succeed()
    before = cluster.wait_phase("anna", "Succeeded")
    assert (cluster.job("anna") or {})["spec"].get("ttlSecondsAfterFinished") is None
    cluster.change("anna", ttlSecondsAfterFinished=0)
    wait_for(
        lambda: cluster.job("anna") is None and not cluster.pods("anna"), "Job and pod are deleted", timeout=PATIENCE
    )
    after = cluster.wait_status("anna", lambda now: now["observedGeneration"] == 2, "the generation follows")
    assert after | {"observedGeneration": 1} == before
    assert own_operator.stop() == 0
    own_operator.start()
    own_operator.wait_ready()
    cluster.change("anna", ttlSecondsAfterFinished=5)
    after = cluster.wait_status("anna", lambda now: now["observedGeneration"] == 3, "the generation follows")
    assert after | {"observedGeneration": 1} == before
    assert cluster.job("anna") is None


def test_a_foreign_job_of_the_same_name_is_left_alone(cluster: Cluster, own_operator: OperatorProcess) -> None:
    own_operator.kill()
    cluster.apply("anna")
    name = f"anna-{cluster.run('anna')}"
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}
    foreign = {"metadata": {"name": name}, "spec": {"suspend": True, "template": template}}
    created = cluster.call("POST", cluster.path("jobs"), foreign)
    own_operator.start()
    ready = cluster.wait_reason("anna", "NameConflict")
    assert name in ready["message"]
    present = cluster.get("jobs", name)
    assert present
    assert present["metadata"]["uid"] == created["metadata"]["uid"]
    cluster.delete("jobs", name)
    wait_for(
        lambda: (cluster.job("anna") or {}).get("metadata", {}).get("ownerReferences"), "our Job", timeout=PATIENCE
    )


def test_a_run_that_ended_while_nobody_looked_ends_as_it_did(cluster: Cluster, own_operator: OperatorProcess) -> None:
    cluster.apply("good", training={"epochs": 2})
    cluster.apply("bad", training={"epochs": 2})
    with take_pod(cluster, "good") as good, take_pod(cluster, "bad") as bad:
        good.start()
        bad.start()
        cluster.wait_phase("good", "Running")
        cluster.wait_phase("bad", "Running")
        own_operator.kill()
        good.succeed(checkpoints=[record(1), record(2)])
        bad.end(ExitCode.NO_INPUT)
        cluster.wait_job_end("good")
        cluster.wait_job_end("bad")
    cluster.delete("pods", bad.name, grace=0)  # only the Job's own words remain
    own_operator.start()
    status = cluster.wait_phase("good", "Succeeded")
    assert [entry["epoch"] for entry in status["checkpoints"]] == [1, 2]
    status = cluster.wait_phase("bad", "Failed")
    assert status["failure"]["reason"] == FailureReason.NOT_FOUND
    assert status["failure"]["exitCode"] == ExitCode.NO_INPUT
