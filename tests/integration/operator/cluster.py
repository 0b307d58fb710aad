"""What the operator's tests do to a cluster: objects by short names, and a kubelet played by hand."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import queue
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, TypeVar

from darkroom_api.kinds import KINDS, LORA_TRAINING, TrainingKind
from darkroom_api.names import API_VERSION, LABEL_RUN, PROGRESS_PORT, run_id
from darkroom_api.progress import CheckpointRecord, Plan, Progress, Stage
from darkroom_api.result import RunResult, encode_result
from dev.cluster.certificates import pair
from dev.cluster.components import Site
from dev.cluster.console import ClusterError
from dev.cluster.waiting import wait_for
from tests.builders.specs import REQUIRED

Object = dict[str, Any]
NODE = "node1"
PATIENCE = 120.0
"""Seconds; long, since the machine may be busy with other things, and short waits prove nothing more."""
T = TypeVar("T")
MERGE = "application/merge-patch+json"
PLAN = Plan(images=15, buckets=[], steps_per_epoch=10, total_steps=20)
_addresses = itertools.count(250 * (os.getpid() % 250))
"""Loopback addresses for pods; another session of tests begins elsewhere."""


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Server:
    """A client that keeps its connections: a TLS handshake for each look at a status would take the whole machine."""

    def __init__(self, site: Site) -> None:
        admin = pair(site.pki, "admin")
        self._context = ssl.create_default_context(cafile=str(site.pki / "ca.crt"))
        self._context.load_cert_chain(admin.certificate, admin.key)
        self._port = site.ports.apiserver
        self._free: queue.SimpleQueue[http.client.HTTPSConnection] = queue.SimpleQueue()

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Return status and body."""
        try:
            connection = self._free.get_nowait()
        except queue.Empty:
            connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=30)
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            answer = response.status, response.read()
        except BaseException:
            connection.close()
            raise
        self._free.put(connection)
        return answer

    def close(self) -> None:
        while not self._free.empty():
            self._free.get_nowait().close()


@dataclass(frozen=True)
class Cluster:
    """Objects of one namespace; its trainings are of one kind, see `of`."""

    server: Server
    namespace: str
    kind: TrainingKind = LORA_TRAINING

    def of(self, kind: TrainingKind) -> Cluster:
        """Return the same namespace for trainings of another kind."""
        return replace(self, kind=kind)

    def call(self, method: str, path: str, body: object = None, *, content_type: str = "application/json") -> Object:
        status, data = self.server.request(method, path, body, content_type=content_type)
        parsed: Object = json.loads(data)
        if not 200 <= status < 300:
            raise RefusedError(status, parsed.get("message", ""))
        return parsed

    def path(self, plural: str, name: str = "", subresource: str = "") -> str:
        prefixes = {kind.plural: f"/apis/{API_VERSION}" for kind in KINDS} | {"jobs": "/apis/batch/v1"}
        parts = [prefixes.get(plural, "/api/v1"), "namespaces", self.namespace, plural, name, subresource]
        return "/".join(part for part in parts if part)

    def apply(self, name: str, *, labels: Mapping[str, str] | None = None, **spec: Any) -> Object:
        body = {
            "apiVersion": API_VERSION,
            "kind": self.kind.name,
            "metadata": {"name": name, "namespace": self.namespace, "labels": dict(labels or {})},
            "spec": REQUIRED[self.kind.name] | spec,
        }
        return self.call("POST", self.path(self.kind.plural) + "?fieldValidation=Strict", body)

    def change(self, name: str, **spec: Any) -> Object:
        return self.call("PATCH", self.path(self.kind.plural, name), {"spec": spec}, content_type=MERGE)

    def get(self, plural: str, name: str) -> Object | None:
        try:
            return self.call("GET", self.path(plural, name))
        except RefusedError as refused:
            if refused.status == 404:
                return None
            raise

    def list_all(self, plural: str, selector: str = "") -> list[Object]:
        items: list[Object] = self.call("GET", self.path(plural) + (f"?labelSelector={selector}" if selector else ""))[
            "items"
        ]
        return items

    def delete(self, plural: str, name: str, *, grace: int | None = None) -> None:
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        self.call("DELETE", self.path(plural, name), options)

    def training(self, name: str) -> Object:
        found = self.get(self.kind.plural, name)
        assert found, f"{name} is there"
        return found

    def status(self, name: str) -> Object:
        status: Object = self.training(name).get("status") or {}
        return status

    def condition(self, name: str, kind: str) -> Object:
        return next((entry for entry in self.status(name).get("conditions", ()) if entry["type"] == kind), {})

    def run(self, name: str) -> str:
        return run_id(self.training(name)["metadata"]["uid"])

    def job(self, name: str) -> Object | None:
        return self.get("jobs", f"{name}-{self.run(name)}")

    def pods(self, name: str) -> list[Object]:
        return self.list_all("pods", f"{LABEL_RUN}={self.run(name)}")

    def wait_job_end(self, name: str) -> Object:
        """Wait until the Job controller has drawn its conclusion, and return that condition."""

        def end() -> Object | None:
            conditions = ((self.job(name) or {}).get("status") or {}).get("conditions") or ()
            return next((entry for entry in conditions if entry["type"] in {"Complete", "Failed"}), None)

        return self.wait(end, name, "the Job has ended")

    def wait_status(self, name: str, test: Callable[[Object], object], what: str) -> Object:
        return self.wait(lambda: status if test(status := self.status(name)) else None, name, what)

    def wait(self, condition: Callable[[], T | None], name: str, what: str) -> T:
        """Wait for a condition; when it does not come, tell what the training's status was."""
        try:
            return wait_for(condition, f"{name}: {what}", timeout=PATIENCE, pause=0.1)
        except ClusterError as error:
            raise AssertionError(f"{error}; the status is {json.dumps(self.status(name), indent=1)}") from error

    def wait_phase(self, name: str, phase: str) -> Object:
        return self.wait_status(name, lambda status: status.get("phase") == phase, f"phase {phase}")

    def wait_reason(self, name: str, reason: str) -> Object:
        """Wait for the reason of Ready and return that condition."""

        def ready() -> Object | None:
            found = self.condition(name, "Ready")
            return found if found.get("reason") == reason else None

        return self.wait(ready, name, f"Ready with reason {reason}")


class _Reporter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.server.document()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, document: Callable[[], bytes]) -> None:
        super().__init__((address, PROGRESS_PORT), _Reporter)
        self.document = document

    def handle_error(self, *_: object) -> None:
        """Say nothing: an operator that is killed leaves connections half open."""


def _serve(document: Callable[[], bytes]) -> _Server:
    """Serve on a loopback address of its own: the port is the same for all pods."""
    for high, low in (divmod(number, 250) for number in itertools.islice(_addresses, 1000)):
        with suppress(OSError):  # taken by another session
            return _Server(f"127.{3 + high // 250 % 250}.{high % 250}.{low + 1}", document)
    raise AssertionError("no loopback address is free")


@dataclass
class PlayedPod:
    """A pod whose kubelet is the test."""

    cluster: Cluster
    name: str
    run: str
    address: str = ""
    body: bytes = b"{}"
    _server: _Server | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_serving()

    def start(self) -> None:
        """Let the container run and answer at /progress."""
        self._server = _serve(lambda: self.body)
        self.address = str(self._server.server_address[0])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        running = {"running": {"startedAt": now()}}
        self.patch(
            {"phase": "Running", "podIP": self.address, "podIPs": [{"ip": self.address}], "startTime": now()}, running
        )

    def wait_in(self, reason: str, message: str) -> None:
        """Let the container wait."""
        self.patch({"phase": "Pending", "startTime": now()}, {"waiting": {"reason": reason, "message": message}})

    def say(self, **values: Any) -> None:
        """Report progress from now on."""
        defaults = {"run": self.run, "pod": self.name, "stage": Stage.TRAINING, "updated": datetime.now(UTC)}
        self.body = Progress(**(defaults | values)).model_dump_json(by_alias=True).encode()

    def end(self, exit_code: int, result: RunResult | None = None, *, reason: str = "", **status: Any) -> None:
        """Let the container end."""
        self._stop_serving()
        message = encode_result(result).decode() if result else ""
        terminated = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": message,
            "startedAt": now(),
            "finishedAt": now(),
        }
        self.patch({"phase": "Failed" if exit_code else "Succeeded"} | status, {"terminated": terminated})

    def succeed(self, **values: Any) -> None:
        """Let the container end well."""
        defaults = {"run": self.run, "outcome": "Succeeded", "plan": PLAN, "step": 20, "epoch": 2}
        self.end(0, RunResult(**(defaults | values)))

    def vanish(self) -> None:
        """Complete the pod's deletion."""
        self.cluster.delete("pods", self.name, grace=0)

    def patch(self, status: Object, state: Object) -> None:
        container = {
            "name": "trainer",
            "image": "x",
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        body = {"status": status | {"containerStatuses": [container]}}
        self.cluster.call("PATCH", self.cluster.path("pods", self.name, "status"), body, content_type=MERGE)

    def _stop_serving(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def take_pod(cluster: Cluster, name: str, *, besides: set[str] | frozenset[str] = frozenset()) -> PlayedPod:
    """Wait for a new pod of a training, bind it to the played node and return it."""

    selector = f"{LABEL_RUN}={cluster.run(name)}"

    def fresh() -> Object | None:
        pods = [pod for pod in cluster.list_all("pods", selector) if pod["metadata"]["name"] not in besides]
        return pods[0] if pods else None

    pod = cluster.wait(fresh, name, "a new pod")["metadata"]["name"]
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod, "namespace": cluster.namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
    }
    cluster.call("POST", cluster.path("pods", pod, "binding"), binding)
    return PlayedPod(cluster, pod, cluster.run(name))


def record(epoch: int) -> CheckpointRecord:
    return CheckpointRecord(
        epoch=epoch, step=10 * epoch, sha256=f"{epoch:064x}", size_bytes=1000 + epoch, num_samples=1
    )


@contextmanager
def played_node(server: Server) -> Iterator[None]:
    """Have a node with a heart beat, so that bound pods are neither collected nor evicted."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    server.request("POST", "/api/v1/nodes", node)
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    stopped = threading.Event()

    def beat() -> None:
        while True:
            time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            spec = {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": time}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NODE}, "spec": spec}
            ready = [{"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now()}]
            server.request(
                "PATCH", f"/api/v1/nodes/{NODE}/status", {"status": {"conditions": ready}}, content_type=MERGE
            )
            if server.request("PATCH", f"{path}/{NODE}", {"spec": spec}, content_type=MERGE)[0] == 404:
                server.request("POST", path, lease)
            if stopped.wait(8):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        server.request("DELETE", f"/api/v1/nodes/{NODE}")
