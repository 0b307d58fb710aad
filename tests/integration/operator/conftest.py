"""A cluster with the CRDs, a played node, and a namespace and an operator for each test."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from darkroom_api.__main__ import generated_files
from darkroom_api.kinds import KINDS
from darkroom_api.names import API_VERSION
from dev.cluster.control_plane import ControlPlane
from dev.cluster.waiting import wait_for
from tests.integration.operator.cluster import Cluster, Server, played_node
from tests.integration.operator.process import OperatorProcess

NewCluster = Callable[[], Cluster]


@pytest.fixture(scope="session")
def server(control_plane: ControlPlane) -> Iterator[Server]:
    """The API server with our CRDs and one node."""
    server = Server(control_plane.site)
    for file, text in generated_files().items():
        if file.parts[0] == "crds":
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            status, body = server.request("POST", path, yaml.safe_load(text))
            assert status in {201, 409}, body
    wait_for(
        lambda: all(server.request("GET", f"/apis/{API_VERSION}/{kind.plural}")[0] == 200 for kind in KINDS),
        "the CRDs are served",
        timeout=30,
    )
    with played_node(server):
        yield server
    server.close()


@pytest.fixture(scope="session")
def new_cluster(server: Server) -> NewCluster:
    """Make a namespace of its own."""

    def make() -> Cluster:
        name = f"test-{secrets.token_hex(4)}"
        cluster = Cluster(server, name)
        cluster.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        wait_for(lambda: cluster.get("serviceaccounts", "default"), "the namespace has its service account", timeout=30)
        return cluster

    return make


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    return new_cluster()


@pytest.fixture(scope="module")
def operator(server: Server, kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """A running operator for all tests of a module."""
    del server  # the CRD comes first
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("operator") / "log") as running:
        running.wait_ready()
        yield running


@pytest.fixture
def own_operator(cluster: Cluster, kubeconfig: Path, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator for the test's namespace only, which the test may end."""
    with OperatorProcess(kubeconfig, tmp_path / "operator.log", namespace=cluster.namespace) as running:
        running.wait_ready()
        yield running
