"""The local cluster comes up from every state that a hard stop or a failed start leaves, and goes without a trace.

These tests take the machine's one cluster down and leave a fresh one up. They lie in a directory of their own because
pytest runs a directory's folders before its files: whatever the other tests put into a cluster comes after them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dev.cluster import binaries, control_plane, full, leftovers, network, node, packages
from dev.cluster.full import State
from dev.cluster.paths import REPOSITORY, cache_directory, existing_layout, full_layout
from dev.cluster.processes import is_alive, marked_processes
from dev.cluster.storage import is_healthy
from dev.cluster.waiting import wait_for

LAYOUT = full_layout()
SUPERVISOR = full.supervisor(LAYOUT)


@pytest.fixture(scope="module", autouse=True)
def prepared() -> Iterator[None]:
    """Nothing here waits for a build, and a cluster is up afterwards, whatever has failed."""
    full.require_root()
    binaries.require_control_plane()
    assert not packages.missing(packages.NODE), "python -m dev.cluster build"
    yield
    cluster("up")


def cluster(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dev.cluster", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def up() -> str:
    result = cluster("up")
    assert result.returncode == 0, result.stderr
    return result.stderr


def our_processes() -> set[int]:
    return {pid for pid, _ in marked_processes(SUPERVISOR.mark)} | leftovers.pod_processes()


def assert_nothing_left() -> None:
    assert our_processes() == set()
    assert leftovers.mounts_below(LAYOUT.run, LAYOUT.data) == []
    assert not any(directory.exists() for directory in leftovers.cgroup_directories())
    assert network.BRIDGE not in [name for _, name in socket.if_nameindex()]
    for program in ("iptables-save", "ip6tables-save"):
        rules = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        assert not [line for line in rules.splitlines() if any(w in line for w in ("KUBE-", "CNI-", network.COMMENT))]
    assert not LAYOUT.run.exists()
    assert not LAYOUT.kubelet.exists()


def run_pod(name: str) -> None:
    """Create a pod under restricted security from the one image that needs no registry, and wait until it is Ready."""
    client = control_plane.client(full.site(LAYOUT))
    hardened = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    container = {"name": "main", "image": node.PAUSE_IMAGE, "imagePullPolicy": "Never", "securityContext": hardened}
    spec = {
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    status, body = client.request("POST", "/api/v1/namespaces/default/pods", body=pod)
    assert status == 201, body

    def ready() -> bool:
        found = client.get(f"/api/v1/namespaces/default/pods/{name}") or {}
        conditions = found.get("status", {}).get("conditions", [])
        return {"type": "Ready", "status": "True"}.items() <= next(
            (entry.items() for entry in conditions if entry["type"] == "Ready"), {}.items()
        )

    wait_for(ready, f"pod {name} is Ready", timeout=60)


def pids() -> Mapping[str, int]:
    return {record.name: record.pid for record in SUPERVISOR.records() if is_alive(record)}


def test_up_from_whatever_state_this_machine_is_in() -> None:
    up()
    assert set(pids()) == set(full.COMPONENTS)
    before = pids()
    assert "the cluster is up" in up()
    assert pids() == before, "a second `up` starts and ends nothing"
    status = cluster("status")
    assert status.returncode == 0
    assert "node1 Ready" in status.stdout
    assert cluster("up", "--fake-gpus", "8").returncode == 0
    assert "GPUs 8" in cluster("status").stdout
    assert pids() == before


def test_everything_killed_and_a_torn_record() -> None:
    up()
    run_pod("before")
    for pid in our_processes():
        os.kill(pid, signal.SIGKILL)
    (LAYOUT.records / "etcd.json").write_text('{"name": "et')
    assert cluster("status").returncode == 1
    assert leftovers.mounts_below(LAYOUT.run), "the dead pod's mounts are still there"
    assert "starting anew" in up()
    run_pod("after")
    assert node.ctr(LAYOUT, "containers", "ls", "-q").split(), "containers of the new pod"


def test_components_killed_while_pods_live_on_and_records_are_gone() -> None:
    up()
    run_pod("orphan")
    orphans = leftovers.pod_processes()
    assert orphans
    for path in LAYOUT.records.glob("*.json"):
        os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
        path.unlink()
    up()
    assert not orphans & leftovers.pod_processes()
    run_pod("after")


def test_a_store_that_lost_its_sockets_is_started_anew_alone() -> None:
    up()
    before = pids()
    store = SUPERVISOR.find("seaweedfs")
    assert store is not None
    lost = [port.partition("=")[2] for port in store.argv if ".port.grpc=" in port]
    for path in Path("/tmp").glob("seaweedfs-*-grpc-*.sock"):
        if path.stem.rpartition("-")[2] in lost:
            path.unlink()
    assert "does not keep objects" in cluster("status").stdout
    assert "starting it anew, pods run on" in up()
    after = pids()
    assert {name for name in before if before[name] != after[name]} == {"seaweedfs"}
    assert cluster("status").returncode == 0


def test_down_leaves_nothing_and_is_repeatable() -> None:
    cluster("down")
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    forwarding.write_text("0")  # else putting it back could not be told from leaving it
    try:
        up()
        assert forwarding.read_text() == "1\n"
        run_pod("running")
        for _ in range(2):
            result = cluster("down")
            assert result.returncode == 0, result.stderr
            assert_nothing_left()
            assert forwarding.read_text() == "0\n"
    finally:
        forwarding.write_text(before)
    assert cluster("status").returncode == 1


def test_a_taken_port_names_its_holder_and_leaves_nothing() -> None:
    cluster("down")
    with socket.create_server(("127.0.0.1", full.PORTS.scheduler)):
        result = cluster("up")
    assert result.returncode == 1
    assert f"{full.PORTS.scheduler} (kube-scheduler) is held by process {os.getpid()}" in result.stderr
    assert_nothing_left()


def test_a_component_that_fails_shows_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    cluster("down")
    broken = tmp_path / "containerd"
    broken.write_text("#!/bin/sh\necho this one cannot start >&2\nexit 1\n")
    broken.chmod(0o755)
    result = cluster("up", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "this one cannot start" in result.stderr
    assert result.returncode == 1
    assert "containerd ended by itself. The last lines of its log" in result.stderr
    assert str(LAYOUT.logs / "containerd.log") in result.stderr
    assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_up_that_is_ended_half_way(number: signal.Signals) -> None:
    cluster("down")
    with subprocess.Popen(
        [sys.executable, "-m", "dev.cluster", "up"], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    ) as half:
        wait_for(lambda: "kube-apiserver" in pids(), "it is half way", timeout=60, pause=0.02)
        half.send_signal(number)
    if number == signal.SIGTERM:
        assert_nothing_left()
    else:
        assert our_processes()
    up()
    run_pod("after")


def test_an_existing_cluster_is_used_and_not_touched() -> None:
    up()
    before = pids()
    state = State.read(LAYOUT)
    assert state is not None
    chosen = {"CLUSTER": "existing", "KUBECONFIG": state.kubeconfig, "DARKROOM_REGISTRY": state.registry}
    refused = cluster("up", **chosen)
    assert refused.returncode == 1
    assert "DARKROOM_HOST_ADDRESS" in refused.stderr, "its API server is on loopback: no pod would find the store"
    chosen["DARKROOM_HOST_ADDRESS"] = network.ADDRESS
    result = cluster("up", **chosen)
    assert result.returncode == 0, result.stderr
    beside = State.read(existing_layout())
    assert beside is not None
    assert is_healthy(beside.s3.url)
    assert beside.s3.url != state.s3.url
    assert f"export DARKROOM_S3_ENDPOINT={beside.s3.url}" in cluster("env", **chosen).stdout
    status = cluster("status", **chosen)
    assert status.returncode == 0
    assert "does NOT answer" not in status.stdout
    given = {"DARKROOM_S3_ENDPOINT": state.s3.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert cluster("up", **chosen, **given).returncode == 0
    assert cluster("up", **chosen).returncode == 0
    assert State.read(existing_layout()) is not None
    assert f"export DARKROOM_S3_ENDPOINT={beside.s3.url}" in cluster("env", **chosen).stdout, "its own again"
    assert cluster("down", **chosen).returncode == 0
    assert not is_healthy(beside.s3.url)
    assert cluster("status", **chosen).returncode == 1
    assert cluster("up", **chosen, **given).returncode == 0
    assert not full.supervisor(existing_layout()).records(), "a given store: nothing is started"
    assert cluster("down", **chosen).returncode == 0
    assert pids() == before
    assert not existing_layout().kubeconfig.exists()
    assert cache_directory() in existing_layout().data.parents


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DARKROOM_REGISTRY", "127.0.0.1:1", "no image registry answers there"),
        ("KUBECONFIG", "/nowhere", "/nowhere"),
        ("DARKROOM_REGISTRY", "", "needs DARKROOM_REGISTRY"),
    ],
)
def test_an_existing_cluster_that_cannot_be_used(variable: str, value: str, message: str) -> None:
    chosen = {"CLUSTER": "existing", "KUBECONFIG": str(LAYOUT.kubeconfig), "DARKROOM_REGISTRY": node.REGISTRY}
    result = cluster("up", **{**chosen, variable: value})
    assert result.returncode == 1
    assert message in result.stderr
