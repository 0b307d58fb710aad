"""The command lines of the control plane: pure functions of where things lie and who listens where.

Every flag was measured to be needed on a bare machine; the node's side is in `node`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SERVICE_RANGE = "10.96.0.0/16"
ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True)
class Ports:
    """Where the control plane listens."""

    apiserver: int = 6443
    etcd: int = 2379
    etcd_peer: int = 2380
    controller_manager: int = 10257
    scheduler: int = 10259


@dataclass(frozen=True)
class Site:
    """Everything the command lines depend on.

    `node_address` is the address pods use; None where there is no node, and the API server then stays on loopback.
    """

    pki: Path
    data: Path
    ports: Ports
    node_address: str | None = None

    @property
    def local_url(self) -> str:
        return f"https://127.0.0.1:{self.ports.apiserver}"

    def kubeconfig(self, name: str) -> Path:
        return self.data / f"{name}.kubeconfig"


def etcd(program: Path, site: Site) -> list[str]:
    """Return etcd's command line; its data is thrown away at every start, so it need not be safe on disk."""
    client = f"https://127.0.0.1:{site.ports.etcd}"
    peer = f"http://127.0.0.1:{site.ports.etcd_peer}"
    return [
        str(program),
        "--name=local",
        f"--data-dir={site.data / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=local={peer}",
        f"--cert-file={site.pki / 'etcd.crt'}",
        f"--key-file={site.pki / 'etcd.key'}",
        f"--trusted-ca-file={site.pki / 'ca.crt'}",
        "--client-cert-auth",
        "--log-level=warn",
    ]


def apiserver(program: Path, site: Site) -> list[str]:
    """Return the API server's command line."""
    pki = site.pki
    if site.node_address:
        reach = ["--bind-address=0.0.0.0", f"--advertise-address={site.node_address}"]
    else:  # no pod will ever look for it, and a loopback address is refused as an endpoint
        reach = ["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"]
    return [
        str(program),
        *reach,
        f"--secure-port={site.ports.apiserver}",
        f"--cert-dir={site.data / 'apiserver'}",
        f"--etcd-servers=https://127.0.0.1:{site.ports.etcd}",
        f"--etcd-cafile={pki / 'ca.crt'}",
        f"--etcd-certfile={pki / 'etcd.crt'}",
        f"--etcd-keyfile={pki / 'etcd.key'}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={pki / 'service-account.key'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    ]


def controller_manager(program: Path, site: Site) -> list[str]:
    """Return the controller manager's command line."""
    return [
        *_client(program, site, name="kube-controller-manager"),
        f"--secure-port={site.ports.controller_manager}",
        f"--cert-dir={site.data / 'controller-manager'}",
        f"--service-account-private-key-file={site.pki / 'service-account.key'}",
        f"--root-ca-file={site.pki / 'ca.crt'}",
        "--use-service-account-credentials=true",
    ]


def scheduler(program: Path, site: Site) -> list[str]:
    """Return the scheduler's command line."""
    return [
        *_client(program, site, name="kube-scheduler"),
        f"--secure-port={site.ports.scheduler}",
        f"--cert-dir={site.data / 'scheduler'}",
    ]


def _client(program: Path, site: Site, *, name: str) -> list[str]:
    kubeconfig = site.kubeconfig(name)
    return [
        str(program),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]
