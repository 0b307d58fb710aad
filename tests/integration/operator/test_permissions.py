"""The operator with exactly the permissions that the chart gives it, and a token instead of a certificate."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from darkroom_api.failures import ExitCode
from darkroom_api.kinds import TRAININGS
from dev.cluster import binaries
from dev.cluster.control_plane import ControlPlane
from tests.integration.operator.cluster import PLAN, Cluster, record, take_pod
from tests.integration.operator.process import OperatorProcess

CHART = Path("charts/darkroom")


def grant(cluster: Cluster, kubeconfig: Path, *, namespaced: bool) -> str:
    """Apply the chart's rules for an account of the test's namespace, and return the account's name."""
    scope = [f"--set=watchNamespaces={{{cluster.namespace}}}"] if namespaced else []
    only = ["--show-only=templates/rbac/operator.yaml", "--show-only=templates/operator/serviceaccount.yaml"]
    images = ["--set=operator.image=o:1", "--set=trainer.image=t:1"]
    name = [cluster.namespace, str(CHART), f"--namespace={cluster.namespace}"]
    rendered = subprocess.run(
        [str(binaries.helm()), "template", *name, *scope, *only, *images], check=True, capture_output=True
    ).stdout
    kubectl = binaries.kubernetes_directory() / "kubectl"
    command = [str(kubectl), f"--kubeconfig={kubeconfig}", f"--namespace={cluster.namespace}", "apply", "-f", "-"]
    subprocess.run(command, input=rendered, check=True, capture_output=True)
    account = next(item for item in yaml.safe_load_all(rendered) if item and item["kind"] == "ServiceAccount")
    return str(account["metadata"]["name"])


def token_of(cluster: Cluster, account: str) -> str:
    path = cluster.path("serviceaccounts", account, "token")
    return str(cluster.call("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"])


def kubeconfig_with(token: str, plane: ControlPlane, path: Path) -> Path:
    authority = str(plane.site.pki / "ca.crt")
    values = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": plane.server, "certificate-authority": authority}}],
        "users": [{"name": "it", "user": {"token": token}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("namespaced", [True, False], ids=["namespace", "cluster"])
def test_the_charts_rules_are_enough_for_a_whole_run(
    namespaced: bool, cluster: Cluster, control_plane: ControlPlane, tmp_path: Path
) -> None:
    token = token_of(cluster, grant(cluster, control_plane.kubeconfig, namespaced=namespaced))
    kubeconfig = kubeconfig_with(token, control_plane, tmp_path / "kubeconfig")
    scope = cluster.namespace if namespaced else None
    with OperatorProcess(kubeconfig, tmp_path / "log", namespace=scope):
        cluster.apply("anna", training={"epochs": 2}, ttlSecondsAfterFinished=0)
        cluster.apply("bea", labels={"kueue.x-k8s.io/queue-name": "gpus"})
        others = [cluster.of(kind) for kind in TRAININGS if kind != cluster.kind]
        for other in others:
            other.apply("anna")
        with take_pod(cluster, "anna") as pod:
            pod.say(plan=PLAN, epoch=1, step=5, checkpoints=[record(1)])
            pod.start()
            cluster.wait_status("anna", lambda status: status.get("checkpoints"), "a checkpoint")
            pod.end(ExitCode.DONE)
            cluster.wait_phase("anna", "Succeeded")
        cluster.wait(lambda: cluster.job("anna") is None, "anna", "the ttl has deleted the Job")
        cluster.change("bea", suspend=True)
        cluster.wait_phase("bea", "Suspended")
        for other in others:
            other.change("anna", suspend=True)
            other.wait_phase("anna", "Suspended")
        events = cluster.list_all("events")
        assert {event["reason"] for event in events if event["involvedObject"]["kind"] == "LoraTraining"} > {
            "Succeeded"
        }
    log = (tmp_path / "log").read_text()
    assert "forbidden" not in log.lower()


def test_without_permissions_the_operator_says_which_and_ends(
    cluster: Cluster, control_plane: ControlPlane, tmp_path: Path
) -> None:
    kubeconfig = kubeconfig_with(token_of(cluster, "default"), control_plane, tmp_path / "kubeconfig")
    with OperatorProcess(kubeconfig, tmp_path / "log", namespace=cluster.namespace) as operator:
        assert operator.process
        assert operator.process.wait(90) == 1
    log = (tmp_path / "log").read_text()
    assert "cannot list resource" in log
    assert "loratrainings" in log


def test_the_operator_may_read_no_secret(cluster: Cluster, control_plane: ControlPlane) -> None:
    name = grant(cluster, control_plane.kubeconfig, namespaced=False)
    account = f"system:serviceaccount:{cluster.namespace}:{name}"

    def may_get(plural: str) -> bool:
        attributes = {"namespace": cluster.namespace, "resource": plural, "verb": "get"}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": account, "resourceAttributes": attributes},
        }
        answer = cluster.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    assert may_get("configmaps")  # the account is the right one
    assert not may_get("secrets")
