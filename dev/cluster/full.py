"""The full local cluster: control plane, one real node, image registry and S3 store; up, health and down.

`up` on a healthy cluster is a no-op; on anything else (nothing, half a cluster, what a hard stop left) it first clears
everything away and then starts from nothing, so there is one path and it is always the tested one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from dev.cluster import binaries, control_plane, leftovers, network, node, packages, registry, storage
from dev.cluster.components import Ports, Site
from dev.cluster.console import ClusterError, say, stage
from dev.cluster.paths import Layout
from dev.cluster.ports import holder, is_free
from dev.cluster.processes import Supervisor, is_alive
from dev.cluster.waiting import wait_for

COMPONENTS = (
    "containerd",
    "registry",
    "seaweedfs",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
"""In the order of starting, which is also the order of `status`."""

BUCKETS = ("darkroom", "models", "studio")
STORE_BROKEN = "the S3 store does not keep objects"
PORTS = Ports()
S3_PORT = 8333
REGISTRY_PORT = 5000
NODE_PORTS = {"kubelet": 10250, "kubelet's health": 10248, "kube-proxy": 10256, "kube-proxy's metrics": 10249}


@dataclass(frozen=True)
class State:
    """What others need to know about the cluster that runs."""

    kubeconfig: str
    registry: str
    s3: storage.Endpoint
    bucket: str
    started_at: float

    def write(self, layout: Layout) -> None:
        layout.state_file.parent.mkdir(parents=True, exist_ok=True)
        layout.state_file.touch(mode=0o600)
        layout.state_file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, layout: Layout) -> State | None:
        """Return the state of the cluster, None if none was started (or a hard stop left half a file)."""
        try:
            values = json.loads(layout.state_file.read_text())
            return cls(**{**values, "s3": storage.Endpoint(**values["s3"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def site(layout: Layout) -> Site:
    return Site(pki=layout.pki, data=layout.data, ports=PORTS, node_address=network.ADDRESS)


def supervisor(layout: Layout) -> Supervisor:
    return Supervisor(layout.records, layout.logs)


@contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """Let one `up` or `down` work at a time."""
    layout.data.mkdir(parents=True, exist_ok=True)
    layout.lock_file.parent.mkdir(parents=True, exist_ok=True)
    with layout.lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stage("wait for another `up` or `down`"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def problem(layout: Layout) -> str | None:
    """Return what is wrong with the cluster, None if it is healthy."""
    state = State.read(layout)
    if state is None:
        return "it is not running"
    alive = {record.name for record in supervisor(layout).records() if is_alive(record)}
    dead = [name for name in COMPONENTS if name not in alive]
    if dead:
        return f"{', '.join(dead)} {'has' if len(dead) == 1 else 'have'} ended"
    try:
        client = control_plane.client(site(layout))
    except OSError as error:
        return f"its certificates cannot be read: {error}"
    endpoint, bucket = state.s3, state.bucket
    checks: dict[str, Callable[[], bool]] = {
        "the API server is not ready": client.is_ready,
        f"{node.NAME} is not Ready": lambda: client.node_is_ready(node.NAME),
        "the image registry does not answer": lambda: registry.answers(state.registry),
        STORE_BROKEN: lambda: storage.has_sockets(supervisor(layout)) and storage.keeps_objects(endpoint, bucket),
    }
    return next((what for what, holds in checks.items() if not holds()), None)


def require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("a node needs root (mounts, namespaces, firewall): run as root, or use CLUSTER=existing")


def up(layout: Layout, *, fake_gpus: int = 0) -> State:
    """Bring the cluster up, or find it up."""
    require_root()
    with exclusive(layout):
        layout = layout.recorded()  # as it is now, after any wait for the lock
        found = problem(layout)
        state = State.read(layout)
        if found == STORE_BROKEN and state is not None:
            say(f"{found}: starting it anew, pods run on")
            _start_store(layout, state.s3)
            with suppress(ClusterError):  # then everything is started anew
                wait_for(lambda: problem(layout) != STORE_BROKEN, "the S3 store keeps objects", timeout=30)
            found = problem(layout)
        if found is None and state is not None:
            say("the cluster is up")
        else:
            if state is not None or layout.run.exists():
                say(f"there is a cluster, but {found}: starting anew")
            if not has_traces(layout):
                require_unused_machine()
            install()
            with stage("clear away what an earlier cluster left"):
                clear(layout)
            state = _start(layout)
        if fake_gpus:
            set_fake_gpus(layout, fake_gpus)
        return state


def has_traces(layout: Layout) -> bool:
    """Tell whether this cluster, and not another one, has left something on this machine."""
    return layout.run.exists() or network.is_set_up(layout.data / "sysctls.json")


def require_unused_machine() -> None:
    """Raise before anything is changed where another cluster, or another program, has what this one needs."""
    network.require_unused_range()
    require_ports()


def install() -> None:
    """Have every program that the cluster needs."""
    packages.ensure(packages.NODE)
    binaries.ensure(*binaries.MODULES)
    binaries.ensure_helm()
    binaries.weed()


def _start(layout: Layout) -> State:
    """Start everything from nothing; clear it all away again if one part fails."""
    begin = time.monotonic()
    try:
        state = _start_parts(layout)
    except BaseException:
        say("  the start failed; stopping what was started")
        with suppress(ClusterError):  # the first error is the one to show
            clear(layout)
        say("  if it fails again: `python -m dev.cluster down --purge` also removes kept images and objects")
        raise
    say(f"the cluster is up after {time.monotonic() - begin:.1f} s")
    return state


def _start_parts(layout: Layout) -> State:
    programs = supervisor(layout)
    where = site(layout)
    endpoint = _endpoint(layout)
    with stage("prepare network, certificates and configuration"):
        require_unused_machine()
        layout.record()
        network.set_up(layout.data / "sysctls.json")
        leftovers.make_cgroups()
        control_plane.prepare(where)
        node.write_configuration(layout)
    with stage("start containerd, image registry and S3 store"):
        runtime = programs.start("containerd", node.containerd(layout))
        address = network.ADDRESS
        argv = registry.command(layout.data / "registry.json", address, REGISTRY_PORT, data=layout.data / "registry")
        images = programs.start("registry", argv)
        _start_store(layout, endpoint)
        wait_for(
            lambda: registry.answers(node.REGISTRY),
            "the image registry answers",
            timeout=30,
            check=lambda: programs.check(images),
        )
        wait_for(
            lambda: node.is_answering(layout),
            "containerd answers",
            timeout=60,
            check=lambda: programs.check(runtime),
        )
        _forget_containers(layout, programs)
        node.ensure_pause_image(layout)
    with stage("start etcd, API server, controllers and scheduler", usual="5 s"):
        control_plane.start(where, programs, scheduler=True)
    with stage("start the node", usual="8 s"):
        _start_node(layout, programs)
    state = State(str(layout.kubeconfig), node.REGISTRY, endpoint, BUCKETS[0], time.time())
    state.write(layout)
    return state


def _start_store(layout: Layout, endpoint: storage.Endpoint) -> None:
    """Start the S3 store on the objects that are there, in place of one that runs."""
    programs = supervisor(layout)
    storage.stop(programs)
    sockets = layout.run / "seaweedfs"
    storage.start(programs, endpoint, data=layout.data / "objects", sockets=sockets, buckets=BUCKETS)


def _forget_containers(layout: Layout, programs: Supervisor) -> None:
    """Drop containers that a hard stop left in containerd's records, before a kubelet sees them."""
    if node.remove_containers(layout):
        programs.stop("containerd")  # its kubelet interface has read them already
        runtime = programs.start("containerd", node.containerd(layout))
        wait_for(
            lambda: node.is_answering(layout),
            "containerd answers again",
            timeout=60,
            check=lambda: programs.check(runtime),
        )


def _start_node(layout: Layout, programs: Supervisor) -> None:
    where = site(layout)
    kubelet = programs.start("kubelet", node.kubelet(layout, where))
    proxy = programs.start("kube-proxy", node.kube_proxy(where))
    client = control_plane.client(where)

    def check() -> None:
        programs.check(kubelet)
        programs.check(proxy)

    wait_for(lambda: client.node_is_ready(node.NAME), f"{node.NAME} is Ready", timeout=90, check=check)


def _endpoint(layout: Layout) -> storage.Endpoint:
    """Return the S3 endpoint; its keys are kept, so that what was exported for one cluster fits the next."""
    path = layout.data / "s3.json"
    with suppress(OSError, ValueError, TypeError):
        return storage.Endpoint(**json.loads(path.read_text()))
    endpoint = storage.new_endpoint(network.ADDRESS, S3_PORT)
    path.touch(mode=0o600)
    path.write_text(json.dumps(endpoint.as_dict()))
    return endpoint


def require_ports() -> None:
    """Raise, naming who holds it, if a port of the cluster is taken."""
    wanted = {
        "kube-apiserver": ("0.0.0.0", PORTS.apiserver),
        "etcd": ("127.0.0.1", PORTS.etcd),
        "etcd's peers": ("127.0.0.1", PORTS.etcd_peer),
        "kube-controller-manager": ("127.0.0.1", PORTS.controller_manager),
        "kube-scheduler": ("127.0.0.1", PORTS.scheduler),
        "image registry": (network.ADDRESS, REGISTRY_PORT),
        "S3 store": (network.ADDRESS, S3_PORT),
        **{name: ("0.0.0.0", port) for name, port in NODE_PORTS.items()},
    }
    taken = [
        f"  {port} ({name}) is held by {holder(port)}"
        for name, (address, port) in wanted.items()
        if not is_free(address, port)
    ]
    if taken:
        raise ClusterError("\n".join(["ports that the cluster needs are taken:", *taken, "End these and try again."]))


def set_fake_gpus(layout: Layout, count: int) -> None:
    """Let the node claim GPUs, so that pods which ask for one are scheduled; no device reaches them."""
    client = control_plane.client(site(layout))
    patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(count)}]
    status, body = client.request(
        "PATCH", f"/api/v1/nodes/{node.NAME}/status", body=patch, content_type="application/json-patch+json"
    )
    if status != 200:
        raise ClusterError(f"the node does not take fake GPUs: {status} {body.decode(errors='replace')[:300]}")

    def allocatable() -> bool:
        found = client.get(f"/api/v1/nodes/{node.NAME}") or {}
        return bool(found.get("status", {}).get("allocatable", {}).get("nvidia.com/gpu") == str(count))

    with stage(f"have {node.NAME} claim {count} GPUs", usual="up to 10 s"):
        wait_for(allocatable, f"{node.NAME} claims {count} GPUs", timeout=60, pause=0.3)


def down(layout: Layout, *, purge: bool = False) -> None:
    """Stop everything; `purge` also removes pulled images, the registry's content and the S3 store's objects."""
    require_root()
    with exclusive(layout):
        layout = layout.recorded()
        with stage("stop the cluster", usual="5 s"):
            _stop_softly(layout)
            clear(layout)
        if purge:
            with stage("remove images and objects"):
                for child in layout.data.iterdir():
                    shutil.rmtree(child) if child.is_dir() else child.unlink()


def _stop_softly(layout: Layout) -> None:
    """Stop in an order in which no part misses another; whatever this leaves, `clear` finds."""
    programs = supervisor(layout)
    for name in ("kube-proxy", "kubelet", "kube-scheduler", "kube-controller-manager", "kube-apiserver"):
        programs.stop(name, grace=1.0 if name == "kube-apiserver" else 5.0)  # open watches would hold it up
    runtime = programs.find("containerd")
    if runtime is not None and is_alive(runtime):
        with suppress(ClusterError):  # a containerd that does not answer is killed next, and its containers with it
            node.remove_containers(layout)


def clear(layout: Layout) -> None:
    """Remove every trace of a cluster, whatever state it is in; nothing happens if there is none."""
    programs = supervisor(layout)
    traces = has_traces(layout)
    storage.stop(programs)
    programs.stop_all(grace=5.0)
    leftovers.kill_pods()
    leftovers.unmount(layout)
    network.remove_bridge()
    if traces:  # else the chains of that kind are another cluster's
        network.clear_rules()
    leftovers.remove_cgroups()
    network.restore_sysctls(layout.data / "sysctls.json")
    leftovers.remove_files(layout)
