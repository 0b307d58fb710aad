"""The demo on a cluster that is somebody else's: a real API server, real helm releases, and a server that is away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from darkroom_api.kinds import KINDS, Kind
from darkroom_api.names import API_VERSION
from dev.cluster import binaries, storage
from dev.cluster.console import ClusterError
from dev.cluster.control_plane import ControlPlane
from dev.cluster.full import State
from dev.cluster.paths import REPOSITORY, Layout
from dev.cluster.ports import free_ports
from dev.cluster.processes import Supervisor
from dev.demo import installing, ownership, running
from dev.demo.__main__ import leave
from dev.demo.site import CHART, NAMESPACE, RELEASE, SYSTEM_NAMESPACE, Site
from tests.builders.specs import REQUIRED

TRAININGS = ownership.TRAININGS
ENDPOINT = storage.Endpoint("http://127.0.0.1:1", "key", "secret")


@pytest.fixture(scope="module")
def kubeconfig() -> Iterator[Path]:
    """An API server that no other test shares: the chart's CRDs would be in the way of those applied by hand."""
    binaries.ensure_helm()
    with ControlPlane() as running_plane:
        yield running_plane.kubeconfig


@pytest.fixture
def site(kubeconfig: Path) -> Iterator[Site]:
    """An existing cluster on which nothing has the demo's names; it is emptied afterwards."""
    site = Site.of(State(str(kubeconfig), "registry:5000", ENDPOINT, "lab", time.time()), is_existing=True)
    yield site
    site.helm("uninstall", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--ignore-not-found", check=False)
    site.kubectl("delete", "namespace", NAMESPACE, SYSTEM_NAMESPACE, "--ignore-not-found")
    site.kubectl("delete", "crd", *ownership.DEFINITIONS, "--ignore-not-found")


def install(site: Site, *flags: str, release: str = RELEASE, namespace: str = SYSTEM_NAMESPACE) -> None:
    """Install the chart; there is no node, so nothing waits for its pods."""
    images = ("--set-string", "operator.image=r/o:1", "--set-string", "trainer.image=r/t:1")
    where = ("--namespace", namespace, "--create-namespace")
    site.helm("upgrade", "--install", release, str(CHART), *where, *images, *flags)


def training(name: str, site: Site) -> dict[str, Any]:
    manifest = site.example()
    manifest["metadata"] = {"name": name, "namespace": NAMESPACE}
    return manifest


def test_the_demo_finds_its_own_and_removes_it(site: Site) -> None:
    ownership.require_free(site)
    for _ in range(2):  # a second run finds what the first made
        installing.prepare_namespaces(site)
        install(site, "--labels", ownership.SELECTOR)
        ownership.require_free(site)
    running.apply_training(site)
    ownership.require_free(site)
    ownership.remove(site)
    assert site.get("namespace", NAMESPACE) is None
    assert site.get("namespace", SYSTEM_NAMESPACE) is None
    assert RELEASE not in site.helm("list", "--all-namespaces", "--output", "json")


def test_a_users_installation_is_refused_and_survives_demo_down(site: Site) -> None:
    install(site)
    site.kubectl("create", "namespace", NAMESPACE)
    site.apply(training("robot", site))
    with pytest.raises(ClusterError) as refused:
        ownership.require_free(site)
    text = str(refused.value)
    assert "helm release darkroom in the namespace darkroom-system: your installation" in text
    assert "namespace demo: " in text
    assert "training robot in demo: " in text
    ownership.remove(site)
    assert site.get(TRAININGS, "robot", "--namespace", NAMESPACE)
    assert f'"name":"{RELEASE}"' in site.helm("list", "--namespace", SYSTEM_NAMESPACE, "--output", "json")


def test_an_installation_under_another_name_is_found_by_its_crd(site: Site) -> None:
    install(site, release="dr", namespace="platform")
    try:
        with pytest.raises(ClusterError, match="of the helm release dr in the namespace platform"):
            ownership.require_free(site)
    finally:
        site.helm("uninstall", "dr", "--namespace", "platform", "--wait")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_users_training_keeps_the_demos_namespace(site: Site, kind: Kind) -> None:
    installing.prepare_namespaces(site)
    install(site, "--labels", ownership.SELECTOR)
    running.apply_training(site)
    mine = {"name": "mine", "namespace": NAMESPACE}
    site.apply({"apiVersion": API_VERSION, "kind": kind.name, "metadata": mine, "spec": REQUIRED[kind.name]})
    ownership.remove(site)
    assert site.get(kind.plural, "mine", "--namespace", NAMESPACE)
    assert site.get(TRAININGS, running.name_of(site), "--namespace", NAMESPACE) is None


def test_a_cluster_that_is_gone_does_not_keep_the_store_running(tmp_path: Path, kubeconfig: Path) -> None:
    values = yaml.safe_load(kubeconfig.read_text())
    values["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(values))
    layout = Layout(data=tmp_path / "data", run=tmp_path / "run")
    endpoint = storage.new_endpoint("127.0.0.1", free_ports(1)[0])
    programs = Supervisor(layout.records, layout.logs, tied=True)
    storage.start(programs, endpoint, data=layout.data / "objects", sockets=layout.run / "sockets")
    State(str(tmp_path / "kubeconfig"), "registry:5000", endpoint, "lab", time.time()).write(layout)
    with pytest.raises(ClusterError, match="does not answer, or refuses"):
        leave(layout)
    assert not storage.is_healthy(endpoint.url)
    assert State.read(layout) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_like_an_error(number: signal.Signals, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an API server that never answers
        silent.settimeout(60)
        where = f"https://127.0.0.1:{silent.getsockname()[1]}"
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "x",
                    "clusters": [{"name": "x", "cluster": {"server": where}}],
                    "users": [{"name": "x", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                }
            )
        )
        more = {"CLUSTER": "existing", "KUBECONFIG": str(kubeconfig), "DARKROOM_REGISTRY": "127.0.0.1:1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "dev.demo", "up"],
            cwd=REPOSITORY,
            env={**os.environ, **more},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            connection, _ = silent.accept()
            process.send_signal(number)
            _, told = process.communicate(timeout=30)
            connection.close()
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert "interrupted; what runs goes on running" in told
    assert "Traceback" not in told
