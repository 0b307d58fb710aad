"""Measures the operator with many LoraTrainings: start to all reconciled, memory, writes; then a warm restart.

Runs a control plane of its own: etcd and kube-apiserver; the controllers are stopped, so that only the operator works.
The floor for the ratio at the end: the same number of Jobs created by a bare client, as many at a time.

    python -m benchmarks.operator_scale --count 1000
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from darkroom_api.__main__ import generated_files
from darkroom_api.kinds import KINDS
from darkroom_api.names import API_VERSION, LABEL_RUN
from dev.cluster.certificates import pair
from dev.cluster.control_plane import ControlPlane
from dev.cluster.ports import free_ports
from dev.cluster.waiting import wait_for

NAMESPACE = "scale"
WORKERS = 8
TRAININGS = "/apis/darkroom.dev/v1alpha1/namespaces/scale/loratrainings"
JOBS = "/apis/batch/v1/namespaces/scale/jobs"
SPEC = {
    "baseModel": {"uri": "s3://models/base.safetensors"},
    "dataset": {"uri": "s3://studio/anna"},
    "output": {"uri": "s3://studio/loras"},
}


class Api:
    """A bare client for one thread."""

    def __init__(self, plane: ControlPlane) -> None:
        admin = pair(plane.site.pki, "admin")
        context = ssl.create_default_context(cafile=str(plane.site.pki / "ca.crt"))
        context.load_cert_chain(admin.certificate, admin.key)
        self._connection = http.client.HTTPSConnection("127.0.0.1", plane.site.ports.apiserver, context=context)

    def call(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Content-Type": "application/json"}
        self._connection.request(method, path, json.dumps(body) if body else None, headers)
        response = self._connection.getresponse()
        data = response.read()
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {response.status} {data.decode(errors='replace')[:500]}")
        return json.loads(data)

    def pages(self, path: str) -> Iterable[Any]:
        self._connection.close()  # the server drops it while the operator works; the next call opens it again
        token = ""
        while True:
            page = self.call("GET", f"{path}limit=500&continue={token}")
            yield from page["items"]
            token = page["metadata"].get("continue") or ""
            if not token:
                return


def spread(plane: ControlPlane, bodies: list[Any], path: str) -> float:
    """Create objects with as many clients as the operator has workers, and return the seconds it took."""

    def create(part: list[Any]) -> None:
        api = Api(plane)
        for body in part:
            api.call("POST", path, body)

    parts = [bodies[start::WORKERS] for start in range(WORKERS)]
    started = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(create, parts))
    return time.perf_counter() - started


def trainings(count: int) -> list[Any]:
    metadata = [{"name": f"run-{number:05}", "namespace": NAMESPACE} for number in range(count)]
    return [{"apiVersion": API_VERSION, "kind": "LoraTraining", "metadata": each, "spec": SPEC} for each in metadata]


@contextmanager
def operator(plane: ControlPlane, log: Path) -> Any:
    """Run an operator; give its process and a function that reads its metrics."""
    port = free_ports(1)[0]
    flags = ["--trainer-image", "x", "--listen", f"127.0.0.1:{port}", "--workers", str(WORKERS)]
    environment = os.environ | {"KUBECONFIG": str(plane.kubeconfig)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "darkroom_operator", *flags], env=environment, stdout=output, stderr=output
        )

    def metrics() -> str | None:
        assert process.poll() is None, f"the operator ended: {log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text: str = answer.read().decode()
                return text
        except OSError:
            return None

    try:
        yield process, metrics
    finally:
        process.kill()
        process.wait()


def value(text: str, name: str) -> float:
    return sum(float(found) for found in re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+]+)$", text, re.MULTILINE))


def writes(text: str) -> dict[str, int]:
    found = re.findall(
        r'^darkroom_api_writes_total\{code="(\d+)",kind="(\w+)",verb="(\w+)"\} ([0-9.e+]+)$', text, re.MULTILINE
    )
    return {f"{verb} {kind} {code}": int(float(number)) for code, kind, verb, number in found}


def settled(api: Api, metrics: Callable[[], str | None], *, count: int, deadline: float) -> str:
    """Wait until every training is reconciled and nothing waits; return the metrics of then."""

    def is_done() -> str | None:
        text = metrics()
        if not text or value(text, "darkroom_reconciles_total") < count or value(text, "darkroom_queue_depth"):
            return None
        pending = value(text, "darkroom_runs") - value(text, r'darkroom_runs\{kind="\w+",phase="None"\}')
        return text if pending >= count else None

    text = wait_for(is_done, "all are reconciled", timeout=deadline, pause=0.1)
    unfinished = [item for item in api.pages(f"{TRAININGS}?") if item["status"]["observedGeneration"] < 1]
    assert not unfinished, f"{len(unfinished)} trainings have no status"
    return text


def measure(plane: ControlPlane, *, count: int, deadline: float) -> None:
    api = Api(plane)
    for path, text in generated_files().items():
        if path.parts[0] == "crds":
            api.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(text))
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})

    def served() -> bool:
        try:
            return all("items" in api.call("GET", f"/apis/{API_VERSION}/{kind.plural}") for kind in KINDS)
        except RuntimeError:
            return False

    wait_for(served, "the CRDs are served", timeout=60)
    plane.supervisor.stop("kube-controller-manager")  # it would make pods at its own pace, and compete for the cores
    spread(plane, trainings(count), TRAININGS)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        cold = run_operator(plane, api, log, label="cold start", count=count, deadline=deadline)
        run_operator(plane, api, log, label="warm restart", count=count, deadline=deadline)
    print(f"bare client, as many Jobs: {(floor := bare_jobs(plane, api)):.1f} s")
    print(f"cold start / bare Jobs: {cold / floor:.2f} ratio")


def run_operator(plane: ControlPlane, api: Api, log: Path, *, label: str, count: int, deadline: float) -> float:
    """Run the operator until all is reconciled, print what it cost, and return the seconds."""
    started = time.perf_counter()
    with operator(plane, log) as (process, metrics):
        wait_for(metrics, "the operator answers", timeout=deadline, pause=0.05)
        answering = time.perf_counter() - started
        text = settled(api, metrics, count=count, deadline=deadline)
        seconds = time.perf_counter() - started
        usage = psutil.Process(process.pid)
        print(f"{label}, process start to first answer: {answering:.1f} s")
        print(f"{label}, process start to all {count} reconciled: {seconds:.1f} s")
        print(f"{label}, resident memory: {usage.memory_info().rss / 2**20:.0f} MiB")
        print(f"{label}, processor time: {sum(usage.cpu_times()[:2]):.1f} s")
        made = writes(text)
        for what, number in sorted(made.items()):
            print(f"{label}, {what}: {number} writes")
        print(f"{label}, all writes: {sum(made.values())} writes", flush=True)
    return seconds


def bare_jobs(plane: ControlPlane, api: Api) -> float:
    """Create the operator's Jobs once more under other names, with a client that does nothing else."""
    bodies = []
    for job in api.pages(f"{JOBS}?labelSelector={LABEL_RUN}&"):
        template = job["spec"]["template"] | {"metadata": {"labels": {"app": "floor"}}}
        keep = ("parallelism", "completions", "backoffLimit", "podReplacementPolicy", "podFailurePolicy")
        spec = {name: job["spec"][name] for name in keep} | {"template": template}
        bodies.append({"metadata": {"name": f"floor-{job['metadata']['name']}"}, "spec": spec})
    return spread(plane, bodies, JOBS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="LoraTrainings present")
    parser.add_argument("--deadline", type=float, default=600, help="seconds after which a step has failed")
    arguments = parser.parse_args()
    with ControlPlane() as plane:
        measure(plane, count=arguments.count, deadline=arguments.deadline)


if __name__ == "__main__":
    main()
