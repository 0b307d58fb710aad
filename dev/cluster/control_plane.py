"""A real API server with etcd and the controllers, without a node: what most tests of an operator need.

Several run at a time, each in its own directory on free loopback ports; needs no root. `full` uses the same pieces.
"""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from dev.cluster import binaries, components
from dev.cluster.certificates import issue_all, pair, write_kubeconfig
from dev.cluster.components import Ports, Site
from dev.cluster.kube import ApiServer
from dev.cluster.paths import cache_directory
from dev.cluster.ports import free_ports
from dev.cluster.processes import Supervisor
from dev.cluster.scratch import Scratch
from dev.cluster.waiting import wait_for

KUBECONFIG_USERS = {
    "admin": "admin",
    "kube-controller-manager": "kube-controller-manager",
    "kube-scheduler": "kube-scheduler",
    "kube-proxy": "kube-proxy",
    "kubelet": "kubelet",
}


def prepare(site: Site) -> None:
    """Write fresh certificates and kubeconfigs, and throw away the state of an earlier cluster."""
    for name in ("etcd", "apiserver", "controller-manager", "scheduler"):
        shutil.rmtree(site.data / name, ignore_errors=True)
    shutil.rmtree(site.pki, ignore_errors=True)
    site.data.mkdir(parents=True, exist_ok=True)
    (site.data / "etcd").mkdir(mode=0o700)
    addresses = ["127.0.0.1", "10.96.0.1", *([site.node_address] if site.node_address else [])]
    issue_all(site.pki, addresses, now=datetime.datetime.now(datetime.UTC))
    for name, user in KUBECONFIG_USERS.items():
        write_kubeconfig(
            site.kubeconfig(name), site.local_url, authority=site.pki / "ca.crt", pair=pair(site.pki, user)
        )


def client(site: Site) -> ApiServer:
    """Return an administrator's client."""
    admin = pair(site.pki, "admin")
    return ApiServer.from_files(
        site.local_url, authority=site.pki / "ca.crt", certificate=admin.certificate, key=admin.key
    )


def start(site: Site, supervisor: Supervisor, *, scheduler: bool) -> None:
    """Start the control plane and return when pods could be created."""
    programs = binaries.kubernetes_directory()
    etcd = supervisor.start("etcd", components.etcd(binaries.etcd(), site))
    apiserver = supervisor.start("kube-apiserver", components.apiserver(programs / "kube-apiserver", site))
    server = client(site)

    def check() -> None:
        for record in (etcd, apiserver):
            supervisor.check(record)

    wait_for(server.is_ready, "the API server is ready", timeout=60, check=check)
    manager = supervisor.start(
        "kube-controller-manager", components.controller_manager(programs / "kube-controller-manager", site)
    )
    if scheduler:
        supervisor.start("kube-scheduler", components.scheduler(programs / "kube-scheduler", site))
    wait_for(
        server.has_default_account,
        "the controller manager has made the default service account",
        timeout=60,
        check=lambda: supervisor.check(manager),
    )


class ControlPlane:
    """A control plane for the time of a `with` block; its programs are killed with this process, however it ends.

    Pods stay Pending: a test that needs their status patches it. With `scheduler` they are bound to nodes that the
    test creates.
    """

    def __init__(self, *, scheduler: bool = False) -> None:
        self._scheduler = scheduler
        self._scratch: Scratch | None = None
        self._supervisor: Supervisor | None = None
        self._site: Site | None = None

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.site.kubeconfig("admin")

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return self.site.local_url

    @property
    def site(self) -> Site:
        assert self._site is not None, "the control plane is not running"
        return self._site

    @property
    def supervisor(self) -> Supervisor:
        """The programs, for a test that ends or stops one of them."""
        assert self._supervisor is not None, "the control plane is not running"
        return self._supervisor

    def __enter__(self) -> Self:
        binaries.require_control_plane()
        self._scratch = Scratch(cache_directory() / "control-planes")
        directory = self._scratch.path
        self._site = Site(pki=directory / "pki", data=directory / "data", ports=Ports(*free_ports(5)))
        self._supervisor = Supervisor(directory / "processes", directory / "logs", tied=True)
        try:
            prepare(self._site)
            start(self._site, self._supervisor, scheduler=self._scheduler)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the programs and remove every file."""
        if self._supervisor is not None:
            # Nothing is worth keeping, so nobody gets time to say goodbye.
            self._supervisor.stop_all(grace=0.0)
        if self._scratch is not None:
            self._scratch.remove()
