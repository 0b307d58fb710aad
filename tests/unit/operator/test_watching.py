"""How kopf reaches the API server."""

from __future__ import annotations

import kopf
import pytest

from darkroom_operator.watching import _without_dns

IN_CLUSTER = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="abc")


@pytest.mark.parametrize(
    ("host", "server"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_own_cluster_is_reached_by_address(host: str, server: str) -> None:
    reached = _without_dns(IN_CLUSTER, {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443"})
    assert (reached.server, reached.token) == (server, "abc")


def test_cluster_of_a_kubeconfig_is_left_alone() -> None:
    given = kopf.ConnectionInfo(server="https://127.0.0.1:6443")
    assert _without_dns(given, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}) is given
