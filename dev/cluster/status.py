"""What runs, since when, with how much memory, and where to reach it."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress

import psutil

from dev.cluster import binaries, control_plane, node
from dev.cluster.full import COMPONENTS, State, problem, site
from dev.cluster.paths import Layout
from dev.cluster.processes import Record, Supervisor, is_alive


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def _row(record: Record, now: float) -> str:
    if not is_alive(record):
        return f"  {record.name:<26}{'ended':<9} see: python -m dev.cluster logs {record.name}"
    mebibytes = psutil.Process(record.pid).memory_info().rss / 2**20
    return f"  {record.name:<26}{'runs':<9}{record.pid:>8}{_duration(now - record.started_at):>10}{mebibytes:>8.0f} MiB"


def describe(layout: Layout, *, now: float | None = None) -> tuple[str, bool]:
    """Return a text for a person, and whether the local cluster is healthy."""
    state = State.read(layout)
    records = Supervisor(layout.records, layout.logs).records()
    if state is None and not records:
        return "the local cluster is not running (start it: python -m dev.cluster up)", False
    found = problem(layout)
    lines = ["the local cluster is healthy" if found is None else f"the local cluster is not healthy: {found}", ""]
    lines.append(f"  {'component':<26}{'state':<9}{'pid':>8}{'for':>10}{'memory':>12}")
    order = {name: index for index, name in enumerate(COMPONENTS)}
    records.sort(key=lambda record: order.get(record.name, len(order)))
    lines += [_row(record, now or time.time()) for record in records]
    if state is not None:
        with suppress(OSError):  # without its certificates nobody can be asked
            lines += ["", *_addresses(layout, state)]
    return "\n".join(lines), found is None


def _addresses(layout: Layout, state: State) -> list[str]:
    client = control_plane.client(site(layout))
    pods = (client.get("/api/v1/pods") or {}).get("items", [])
    facts = (client.get(f"/api/v1/nodes/{node.NAME}") or {}).get("status", {})
    allocatable = facts.get("allocatable", {})
    running = sum(pod["status"].get("phase") == "Running" for pod in pods)
    ready = "Ready" if client.node_is_ready(node.NAME) else "NOT Ready"
    gpus = allocatable.get("nvidia.com/gpu", "0")
    return [
        f"  node            {node.NAME} {ready}, cpu {allocatable.get('cpu')}, memory {allocatable.get('memory')}, "
        f"GPUs {gpus}, {running} of {len(pods)} pods running",
        f"  API server      {site(layout).local_url} (from pods: https://10.96.0.1)",
        f"  kubeconfig      {state.kubeconfig}",
        f"  image registry  {state.registry}",
        f"  S3 store        {state.s3.url} (keys: python -m dev.cluster env)",
        f"  logs            {layout.logs}",
    ]


def exports(state: State) -> str:
    """Return lines for a shell to evaluate: eval "$(python -m dev.cluster env)"."""
    path = f"{binaries.kubernetes_directory()}:{binaries.helm().parent}"
    values = {
        "KUBECONFIG": state.kubeconfig,
        "DARKROOM_REGISTRY": state.registry,
        "DARKROOM_S3_ENDPOINT": state.s3.url,
        "DARKROOM_S3_BUCKET": state.bucket,
        **state.s3.environment(),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    return "\n".join([*lines, f'export PATH={shlex.quote(path)}:"$PATH"'])
