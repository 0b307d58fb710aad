"""The control plane and the store that the other integration tests stand on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from dev.cluster import binaries
from dev.cluster.console import ClusterError
from dev.cluster.control_plane import ControlPlane, client
from dev.cluster.processes import is_alive, marked_processes
from dev.cluster.waiting import wait_for

if TYPE_CHECKING:
    from tests.integration.conftest import Store


def kubectl(kubeconfig: Path, *arguments: str, stdin: str | None = None) -> str:
    program = binaries.kubernetes_directory() / "kubectl"
    command = [str(program), f"--kubeconfig={kubeconfig}", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=60).stdout


JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "one"},
    "spec": {
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "localhost/none"}]}}
    },
}


def test_the_job_controller_makes_a_pod(kubeconfig: Path) -> None:
    kubectl(kubeconfig, "apply", "-f", "-", stdin=json.dumps(JOB))
    selector = ("get", "pods", "-l", "job-name=one", "-o", "jsonpath={.items[*].status.phase}")
    phase = wait_for(lambda: kubectl(kubeconfig, *selector), "the Job has a pod", timeout=20)
    assert phase == "Pending"
    kubectl(kubeconfig, "delete", "job", "one", "--wait")


def test_a_second_control_plane_is_another_cluster(control_plane: ControlPlane) -> None:
    with ControlPlane() as second:
        assert second.server != control_plane.server
        directory = second.site.pki.parent
        kubectl(second.kubeconfig, "create", "namespace", "only-here")
        assert client(second.site).get("/api/v1/namespaces/only-here")
        assert client(control_plane.site).get("/api/v1/namespaces/only-here") is None
        mark = second.supervisor.mark
        assert list(marked_processes(mark))
    assert not list(marked_processes(mark))
    assert not directory.exists()


def test_a_killed_owner_takes_its_programs_with_it() -> None:
    program = (
        "from dev.cluster.control_plane import ControlPlane\n"
        "import sys\n"
        "with ControlPlane() as plane:\n"
        "    print(plane.supervisor.mark, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        mark = owner.stdout.readline().strip()
        assert len(list(marked_processes(mark))) >= 3
        os.kill(owner.pid, signal.SIGKILL)
    wait_for(lambda: not list(marked_processes(mark)), "its programs are gone", timeout=10)
    assert Path(mark).parent.exists(), "nobody was left to remove it"
    with ControlPlane():
        assert not Path(mark).parent.exists(), "the next one removes it"


def test_a_dead_component_is_named_with_its_log() -> None:
    with ControlPlane() as plane:
        record = plane.supervisor.find("etcd")
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(record), "etcd is dead", timeout=5)
        with pytest.raises(ClusterError, match=r"etcd ended by itself[\s\S]*The whole log: .*etcd\.log"):
            plane.supervisor.check(record)


def test_the_store_keeps_objects_over_an_outage(own_s3: Store) -> None:
    bucket = own_s3.bucket()
    own_s3.client().put_object(Bucket=bucket, Key="a/b", Body=b"hello")
    own_s3.server.stop()
    own_s3.server.start()
    assert own_s3.client().get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"hello"


def test_the_store_behaves_where_the_trainer_relies_on_it(s3: Store) -> None:
    bucket = s3.bucket()
    s3.client().put_object(Bucket=bucket, Key="manifest.json", Body=b"{}", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.client().put_object(Bucket=bucket, Key="manifest.json", Body=b"{}", IfNoneMatch="*")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.client().put_object(Bucket="never-made", Key="x", Body=b"")
