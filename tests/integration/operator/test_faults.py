"""The operator is killed at every single write of a run; what comes out must be as if nothing had happened.

For each write there are two ways to lose it: it never reached the API server, or only the answer was lost. The run
that is cut covers creation, progress, checkpoints, suspension, resumption, success and the ttl.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web

from darkroom_api.failures import ExitCode
from darkroom_api.result import RunResult
from dev.cluster.components import Site
from dev.cluster.control_plane import ControlPlane
from dev.cluster.waiting import wait_for
from tests.integration.operator.cluster import MERGE, PATIENCE, PLAN, Cluster, record, take_pod
from tests.integration.operator.conftest import NewCluster
from tests.integration.operator.process import OperatorProcess
from tests.integration.operator.proxy import Cut, FaultProxy, Write

PARALLEL = 4
FLEETING = 4
"""Writes of a run that another may do without: what lasts an instant (Starting, Finishing, both with an event) may pass
unseen, and then the last numbers are not reached."""
NAME = "anna"
_TIMES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind, without what differs between any two runs."""

    status: Any
    job: Any
    config_map: Any
    writes: Sequence[Write]
    was_cut: bool

    @property
    def state(self) -> tuple[Any, Any, Any]:
        return self.status, self.job, self.config_map


class Watchdog:
    """Starts an operator that was killed again, as a kubelet does, but without the fault."""

    def __init__(self, operator: OperatorProcess, proxy: FaultProxy, kubeconfig: Path) -> None:
        self._operator = operator
        self._proxy = proxy
        self._clean = kubeconfig
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._revive, daemon=True)
        self._thread.start()

    def _revive(self) -> None:
        while not self._ended.is_set() and not self._proxy.was_cut.wait(0.05):
            pass
        if self._proxy.was_cut.is_set():
            self._operator.kubeconfig = self._clean
            self._operator.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join(30)


def play(cluster: Cluster) -> None:
    """Play a user and a kubelet through a whole run; each step waits for what the status says."""
    cluster.apply(NAME, training={"epochs": 2})
    with take_pod(cluster, NAME) as first:
        first.say(plan=PLAN, epoch=1, step=5, loss=0.5)
        first.start()
        cluster.wait_status(NAME, lambda status: status.get("progress", {}).get("step") == 5, "step 5")
        first.say(plan=PLAN, epoch=2, step=12, loss=0.25, checkpoints=[record(1)])
        cluster.wait_status(NAME, lambda status: status.get("checkpoints"), "a checkpoint")
        cluster.change(NAME, suspend=True)
        wait_for(
            lambda: "deletionTimestamp" in cluster.pods(NAME)[0]["metadata"],
            "the pod is asked to stop",
            timeout=PATIENCE,
        )
        cluster.wait_reason(NAME, "Suspending")
        first.end(ExitCode.PREEMPTED, RunResult(run=first.run, outcome="Preempted", step=12, epoch=1))
        first.vanish()
        cluster.wait_phase(NAME, "Suspended")
    cluster.change(NAME, suspend=False, ttlSecondsAfterFinished=3600)
    with take_pod(cluster, NAME, besides={first.name}) as second:
        second.say(plan=PLAN, epoch=2, step=15, loss=0.125)
        second.start()
        cluster.wait_status(NAME, lambda status: status["progress"]["step"] == 15, "step 15")
        assert len([pod for pod in cluster.pods(NAME) if "deletionTimestamp" not in pod["metadata"]]) == 1
        second.succeed(checkpoints=[record(1), record(2)])
        cluster.wait_phase(NAME, "Succeeded")
    wait_for(
        lambda: (cluster.job(NAME) or {})["spec"].get("ttlSecondsAfterFinished") == 3600,
        "the Job's ttl",
        timeout=PATIENCE,
    )


def collect(cluster: Cluster, writes: Sequence[Write], *, was_cut: bool) -> Outcome:
    jobs, run = cluster.list_all("jobs"), cluster.run(NAME)
    config_maps = cluster.list_all("configmaps", "darkroom.dev/run")
    assert len(jobs) == 1
    assert len(config_maps) == 1
    uid = cluster.training(NAME)["metadata"]["uid"]

    def plain(value: Any) -> Any:
        text = json.dumps(value, sort_keys=True).replace(uid, "UID").replace(run, "RUN")
        text = re.sub(r"anna-RUN-[a-z0-9]{5}", "POD", text.replace(cluster.namespace, "NAMESPACE"))
        return json.loads(_TIMES.sub("TIME", text))

    spec = {name: value for name, value in jobs[0]["spec"].items() if name != "selector"}
    spec["template"]["metadata"]["labels"].pop("batch.kubernetes.io/controller-uid", None)
    spec["template"]["metadata"]["labels"].pop("controller-uid", None)
    return Outcome(
        status=plain(cluster.status(NAME)),
        job=plain(spec | {"ownerReferences": jobs[0]["metadata"]["ownerReferences"]}),
        config_map=plain(config_maps[0]["data"]),
        writes=writes,
        was_cut=was_cut,
    )


def run_with(cluster: Cluster, plane: ControlPlane, directory: Path, *, cut: Cut | None) -> Outcome:
    """Play a run whose operator is killed at a write."""
    directory.mkdir()
    site: Site = plane.site
    clean = FaultProxy(site, directory)
    with clean:
        clean.kubeconfig.rename(clean_config := directory / "clean.kubeconfig")
        operator = OperatorProcess(clean_config, directory / "log", namespace=cluster.namespace)
        with FaultProxy(site, directory, cut=cut, at_cut=operator.kill) as faulty:
            operator.kubeconfig = faulty.kubeconfig
            with operator:
                watchdog = Watchdog(operator, faulty, clean_config)
                try:
                    play(cluster)
                finally:
                    watchdog.end()
                return collect(cluster, [*faulty.writes, *clean.writes], was_cut=faulty.was_cut.is_set())


@pytest.fixture(scope="module")
def undisturbed(
    new_cluster: NewCluster, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    return run_with(new_cluster(), control_plane, tmp_path_factory.mktemp("undisturbed") / "run", cut=None)


def test_the_undisturbed_run_writes_little(undisturbed: Outcome) -> None:
    kinds = Counter(
        (write.method, write.path.split("/")[-1] if write.method == "POST" else "") for write in undisturbed.writes
    )
    assert kinds["POST", "jobs"] == 1
    assert kinds["POST", "configmaps"] == 1
    assert all(200 <= write.status < 300 for write in undisturbed.writes)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_kill_at_any_write_changes_nothing_in_the_end(
    side: Literal["before", "after"],
    undisturbed: Outcome,
    new_cluster: NewCluster,
    control_plane: ControlPlane,
    tmp_path: Path,
) -> None:
    def cut_at(number: int) -> Outcome:
        return run_with(new_cluster(), control_plane, tmp_path / str(number), cut=Cut(number, side))

    numbers = range(1, len(undisturbed.writes) + 1)
    with ThreadPoolExecutor(PARALLEL) as pool:
        outcomes = dict(zip(numbers, pool.map(cut_at, numbers), strict=True))
    for number, outcome in outcomes.items():
        assert outcome.was_cut or number > len(undisturbed.writes) - FLEETING, f"the run makes a write number {number}"
        assert outcome.state == undisturbed.state, f"cut {side} write {number}: {outcome.writes[:number][-1]}"
        made = [write for write in outcome.writes if write.path.endswith("/jobs") and write.status == 201]
        assert len(made) == 1, f"cut {side} write {number}: {made}"


@contextmanager
def all_phases(cluster: Cluster) -> Iterator[None]:
    """Have a training in every phase in which it may stay."""
    cluster.apply("waiting", dataset={"name": "photos"})
    cluster.apply("suspended", suspend=True)
    cluster.apply("pending")
    cluster.apply("queued", labels={"kueue.x-k8s.io/queue-name": "gpus"})
    for name in ("running", "good", "bad"):
        cluster.apply(name, training={"epochs": 2})
    with ExitStack() as stack:
        running, good, bad = (stack.enter_context(take_pod(cluster, name)) for name in ("running", "good", "bad"))
        running.say(plan=PLAN, epoch=1, step=5, loss=0.5, steps_per_second=1.0)
        for pod in (running, good, bad):
            pod.start()
        good.succeed()
        bad.end(ExitCode.DATA)
        queued = wait_for(lambda: cluster.job("queued"), "the queued Job", timeout=PATIENCE)["metadata"]["name"]
        cluster.call("PATCH", cluster.path("jobs", queued), {"spec": {"suspend": True}}, content_type=MERGE)
        cluster.wait_status("running", lambda status: status.get("progress"), "progress")
        for name in ("waiting", "suspended", "pending", "queued", "running"):
            cluster.wait_phase(name, name.capitalize())
        cluster.wait_phase("good", "Succeeded")
        cluster.wait_phase("bad", "Failed")
        wait_for(lambda: cluster.pods("pending"), "the pending pod", timeout=PATIENCE)
        yield


def test_nothing_is_written_where_nothing_changes(
    cluster: Cluster, control_plane: ControlPlane, tmp_path: Path
) -> None:
    flags = ("--resync", "0.25")  # so that several full lists fall into the quiet time
    with (
        FaultProxy(control_plane.site, tmp_path) as proxy,
        OperatorProcess(proxy.kubeconfig, tmp_path / "log", *flags, namespace=cluster.namespace) as operator,
        all_phases(cluster),
    ):
        settle(proxy)
        before = list(proxy.writes)
        time.sleep(2)  # the absence of something has no condition to wait for
        assert proxy.writes == before
        operator.kill()
        operator.start()
        operator.wait_ready()
        time.sleep(2)
        assert proxy.writes == before
        operator.check()


def settle(proxy: FaultProxy) -> None:
    """Wait until a second passes without a write."""
    seen = -1

    def is_quiet() -> bool:
        nonlocal seen
        before, seen = seen, len(proxy.writes)
        return before == seen

    wait_for(is_quiet, "the writes end", timeout=PATIENCE, pause=1.0)


def test_without_the_crd_the_operator_says_so_and_ends(control_plane: ControlPlane, tmp_path: Path) -> None:
    def hide(request: web.Request) -> str:
        return request.raw_path.replace("/loratrainings", "/nosuchtrainings")

    with (
        FaultProxy(control_plane.site, tmp_path, rewrite=hide) as proxy,
        OperatorProcess(proxy.kubeconfig, tmp_path / "log") as operator,
    ):
        assert operator.process
        assert operator.process.wait(90) == 1
    assert "loratrainings.darkroom.dev/v1alpha1; install the CRDs" in (tmp_path / "log").read_text()


def test_a_deletion_between_the_operators_list_and_its_watch_is_noticed(
    cluster: Cluster, control_plane: ControlPlane, tmp_path: Path
) -> None:
    deleted = threading.Event()

    def delete_before_the_informer_lists(request: web.Request) -> str:
        is_list = request.path.endswith("/pods") and "watch" not in request.query
        if is_list and request.headers["User-Agent"].startswith("kopf") and not deleted.is_set():
            cluster.delete("pods", "bystander", grace=0)
            release = {"metadata": {"finalizers": None}}
            cluster.call("PATCH", cluster.path("pods", "bystander"), release, content_type=MERGE)
            deleted.set()
        return request.raw_path

    cluster.apply(NAME)
    run = cluster.run(NAME)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": f"{NAME}-{run}", "uid": "0", "controller": True}
    labels = {"darkroom.dev/run": run, "darkroom.dev/name": NAME, "darkroom.dev/kind": "LoraTraining"}
    spec = {"containers": [{"name": "trainer", "image": "x"}]}
    with FaultProxy(control_plane.site, tmp_path, rewrite=delete_before_the_informer_lists) as proxy:
        # A pod of a Job that is gone: while it is there, no new Job may be made. The finalizer holds the garbage
        # collector off until the right moment.
        metadata = {
            "name": "bystander",
            "labels": labels,
            "finalizers": ["example.com/keep"],
            "ownerReferences": [owner],
        }
        cluster.call("POST", cluster.path("pods"), {"metadata": metadata, "spec": spec})
        with OperatorProcess(proxy.kubeconfig, tmp_path / "log", namespace=cluster.namespace):
            cluster.wait(deleted.is_set, NAME, "the informer lists pods")
            cluster.wait(lambda: cluster.job(NAME), NAME, "the Job, now that the pod is gone")
