"""Trackers get everything, in order and once; and whatever they do, the run neither waits nor fails."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from darkroom_api.failures import FailureReason
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.plan import RunPlan
from darkroom_api.trackers import MLflow, Tracker, WandB
from darkroom_trainer.errors import RunError
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.tracking import mlflow
from darkroom_trainer.tracking.feed import About, Feed, Point, TrackerAwayError, TrackerRefusedError
from darkroom_trainer.tracking.opening import Tracking, open_tracker, open_tracking, parameters
from darkroom_trainer.tracking.weights_and_biases import WandBTracker
from dev.cluster.waiting import wait_for
from tests.builders.mlflow_server import MLflowServer, mlflow_server
from tests.builders.specs import MINIMAL

SECONDS = 30.0
"""Longest time that anything may take here."""
ABOUT = About("0123456789", "anna", "studio", {"training.epochs": "10"})


def point(step: int) -> Point:
    return Point(step, 1000.0 + step, {"loss": 1 / step})


class Remote:
    """A tracker that does as it is told."""

    name = "the tracker"

    def __init__(self) -> None:
        self.got: list[int] = []
        self.outcome: str | None = None
        self.is_abandoned = False
        self.error: Exception | None = None
        self.refused = threading.Semaphore(0)
        """Released at each call that fails."""
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def begin(self) -> None:
        self._answer()

    def send(self, points: Sequence[Point]) -> None:
        self._answer()
        self.got += [point.step for point in points]

    def end(self, outcome: str) -> None:
        self.outcome = outcome

    def abandon(self) -> None:
        self.is_abandoned = True
        self.may_go_on.set()

    def _answer(self) -> None:
        self.may_go_on.wait(SECONDS)
        if self.error:
            self.refused.release()
            raise self.error


def feed(remote: Remote, **settings: Any) -> Feed:
    return Feed(remote, **({"interval": 0.01, "pause": 0.01} | settings))


def close(fed: Feed, outcome: str = "Succeeded", *, patience: float = SECONDS) -> None:
    fed.finish(outcome)
    fed.wait(patience)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_every_point_arrives_once_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote()
    fed = feed(remote)
    for step in range(1, 1001):
        fed.put(point(step))
    close(fed)
    assert remote.got == list(range(1, 1001))
    assert remote.outcome == "Succeeded"
    assert warnings(caplog) == []


def test_a_run_without_a_single_step_is_opened_and_closed() -> None:
    remote = Remote()
    close(feed(remote), "Failed")
    assert (remote.got, remote.outcome) == ([], "Failed")


def test_a_tracker_that_was_away_gets_all_later_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    remote = Remote()
    remote.error = TrackerAwayError("no route")
    fed = feed(remote)
    for step in range(1, 11):
        fed.put(point(step))
    for _ in range(3):
        assert remote.refused.acquire(timeout=SECONDS)
    remote.error = None
    wait_for(lambda: len(remote.got) == 10, "the points", timeout=SECONDS)
    close(fed)
    assert remote.got == list(range(1, 11))
    assert warnings(caplog) == ["the tracker is away, the run goes on: no route"]
    assert "the tracker answers again" in caplog.messages


def test_a_tracker_that_stays_away_loses_the_oldest_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote()
    remote.error = TrackerAwayError("no route")
    fed = feed(remote, capacity=100, pause=60.0)
    for step in range(1, 1001):
        fed.put(point(step))
    assert remote.refused.acquire(timeout=SECONDS)
    close(fed)
    assert warnings(caplog) == [
        "the tracker is away, the run goes on: no route",
        "the tracker never got the last 100 measurements",
    ]


def test_a_tracker_that_hangs_stops_neither_a_step_nor_the_end(caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote()
    remote.may_go_on.clear()
    fed = feed(remote)
    began = time.monotonic()
    for step in range(1, 1001):
        fed.put(point(step))
    close(fed, patience=0.1)
    assert time.monotonic() - began < SECONDS / 2
    assert warnings(caplog) == ["the tracker never got the last 1000 measurements"]
    assert remote.is_abandoned


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TrackerRefusedError("HTTP 403"), "the tracker gets no more of this run: HTTP 403"),
        (ZeroDivisionError("its bug"), "the tracker gets no more of this run: ZeroDivisionError: its bug"),
    ],
)
def test_a_tracker_that_refuses_is_told_of_once_and_left_alone(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote()
    remote.error = error
    fed = feed(remote)
    assert remote.refused.acquire(timeout=SECONDS)
    close(fed)
    fed.put(point(1))
    assert (remote.got, remote.outcome) == ([], None)
    assert warnings(caplog) == [told]


def test_a_reporter_tells_its_followers_every_measurement() -> None:
    remote, reporter = Remote(), Reporter("0123456789", "anna-0")
    tracking = Tracking([fed := feed(remote)], clock=lambda: 5.0)
    reporter.follow(tracking.measured)
    told: list[tuple[int, dict[str, float]]] = []
    reporter.follow(lambda step, values: told.append((step, dict(values))))
    reporter.validated(0, 0.75)
    reporter.stepped(epoch=1, step=1, loss=0.5, learning_rate=1e-4, seconds=1)
    reporter.validated(1, 0.25)
    assert told == [
        (0, {"validation_loss": 0.75}),
        (1, {"loss": 0.5, "learning_rate": 1e-4, "epoch": 1}),
        (1, {"validation_loss": 0.25}),
    ]
    tracking.close("Succeeded", patience=SECONDS)
    assert (remote.got, remote.outcome) == ([0, 1, 1], "Succeeded")
    fed.wait(0)


@pytest.fixture
def server() -> Iterator[MLflowServer]:
    with mlflow_server() as running:
        yield running


def client(server: MLflowServer, **environ: str) -> mlflow.MLflowTracker:
    return mlflow.MLflowTracker(mlflow.connect(server.url, environ), ABOUT, experiment="studio", clock=lambda: 2000.0)


def test_mlflow_gets_one_run_through_two_attempts(server: MLflowServer) -> None:
    first = client(server)
    first.begin()
    first.send([point(step) for step in range(1, 1501)])
    first.end("Preempted")
    (run,) = server.runs.values()
    assert run["info"] == {
        "run_id": "run-1",
        "run_name": "anna-0123456789",
        "status": "KILLED",
        "end_time": 2_000_000,
    }
    assert run["params"] == {"training.epochs": "10"}
    second = client(server)
    second.begin()
    assert run["info"]["status"] == "RUNNING"
    second.send([point(step) for step in range(1400, 1601)])
    second.send([Point(1600, 1.5, {"validation_loss": 0.5})])
    second.end("Succeeded")
    assert server.values("loss") == {step: 1 / step for step in range(1, 1601)}
    assert server.values("validation_loss") == {1600: 0.5}
    assert {it["timestamp"] for it in server.metrics["run-1"] if it["step"] == 1600} == {2_600_000, 1500}
    assert run["info"]["status"] == "FINISHED"
    assert list(server.experiments) == ["studio"]


def test_what_a_real_server_would_refuse_is_cut_to_size(server: MLflowServer) -> None:
    many = {f"p{index}": "x" * 900 for index in range(250)}
    tracker = mlflow.MLflowTracker(mlflow.connect(server.url, {}), About("r", "n", "s", many), experiment="studio")
    tracker.begin()
    assert {len(value) for value in server.runs["run-1"]["params"].values()} == {500}
    assert len(server.runs["run-1"]["params"]) == 250


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"MLFLOW_TRACKING_TOKEN": "abc"}, "Bearer abc"),
        ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}, "Basic dTpw"),
    ],
)
def test_mlflow_is_asked_with_the_secrets_keys(
    server: MLflowServer, environ: dict[str, str], expected: str | None
) -> None:
    client(server, **environ).begin()
    assert {authorization for _, authorization in server.asked} == {expected}


def test_mlflow_away_and_mlflow_refusing_are_told_apart(server: MLflowServer) -> None:
    for status in (503, 429):
        server.status = status
        with pytest.raises(TrackerAwayError, match=f"HTTP {status}"):
            client(server).begin()
    server.status = 401
    with pytest.raises(TrackerRefusedError, match=r"HTTP 401 not now; look at the Secret in credentials"):
        client(server).begin()
    with pytest.raises(TrackerRefusedError, match=r"without JSON; is this MLflow's address\?"):
        mlflow.connect(f"{server.url}/elsewhere", {}).post("runs/search", {})
    with pytest.raises(TrackerAwayError, match="refused"):
        mlflow.connect("http://127.0.0.1:9", {}).post("runs/search", {})


def plan(*trackers: dict[str, Any]) -> RunPlan:
    spec = LoraTrainingSpec.model_validate(
        MINIMAL | {"trackers": list(trackers), "network": {"type": "LoRA", "rank": 4, "alpha": 2}}
    )
    return RunPlan(kind="LoraTraining", name="anna", namespace="studio", uid="u", run="0123456789", spec=spec)


def test_a_plans_trackers_are_opened_and_told_how_it_is_trained(server: MLflowServer, tmp_path: Path) -> None:
    tracking = open_tracking(plan({"type": "MLflow", "trackingURI": server.url}), {}, tmp_path)
    tracking.measured(3, {"loss": 0.5})
    tracking.close("Succeeded", patience=SECONDS)
    assert server.values("loss") == {3: 0.5}
    told = server.runs["run-1"]["params"]
    assert told["kind"] == "LoraTraining"
    assert (told["network.alpha"], told["training.optimizer.type"]) == ("2.0", "AdamW")
    assert told["baseModel.uri"] == MINIMAL["baseModel"]["uri"]
    assert not [name for name in told if name.startswith(("storage", "trackers", "compute"))]
    assert list(server.experiments) == ["studio"]
    assert parameters(plan()) == told


def test_a_secret_without_the_keys_is_told_at_once(tmp_path: Path) -> None:
    tracker = {"type": "MLflow", "trackingURI": "http://m", "credentials": {"secretName": "mine"}}
    for environ in ({}, {"MLFLOW_TRACKING_USERNAME": "u"}):
        with pytest.raises(
            RunError, match=r"spec.trackers\[0\].credentials.secretName: Secret mine holds neither"
        ) as it:
            open_tracking(plan(tracker), environ, tmp_path)
        assert it.value.reason is FailureReason.ACCESS_DENIED


def test_an_image_without_the_package_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tracker = {"type": "WandB", "credentials": {"secretName": "mine"}}
    with pytest.raises(RunError, match=r"spec.trackers\[0\].type: WandB needs the package wandb") as it:
        open_tracking(plan(tracker), {}, tmp_path)
    assert it.value.reason is FailureReason.INVALID_SPEC


def test_every_tracker_has_its_client() -> None:
    assert set(open_tracker.registry) - {object} == set(get_args(get_args(Tracker)[0])) == {MLflow, WandB}


def weights_and_biases(folder: Path, *, url: str | None = None, **environ: str) -> WandBTracker:
    given = {"type": "WandB", "entity": "us", "baseURL": url, "credentials": {"secretName": "mine"}}
    environ = {**os.environ, "WANDB_API_KEY": "0" * 40, "AWS_SECRET_ACCESS_KEY": "no", **environ}
    return WandBTracker(WandB.model_validate(given), ABOUT, environ=environ, directory=folder)


def test_weights_and_biases_keeps_what_it_is_told(tmp_path: Path) -> None:
    """Offline it writes to the disk what it would send; its server is none that a test could start."""
    fed = feed(weights_and_biases(tmp_path, WANDB_MODE="offline"))  # type: ignore[arg-type]
    for step in range(1, 6):
        fed.put(point(step))
    close(fed)
    records = list(records_below(tmp_path))
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.entity, run.project, run.run_id) == ("us", "studio", "anna-0123456789")
    assert "training.epochs" in {it.key for it in run.config.update}
    history = [record.history for record in records if record.HasField("history")]
    assert [it.step.num for it in history] == [1, 2, 3, 4, 5]
    losses = [item.value_json for it in history for item in it.item if "loss" in (item.key, *item.nested_key)]
    assert [float(loss) for loss in losses] == [1 / step for step in range(1, 6)]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def records_below(folder: Path) -> Iterator[Record]:
    (path,) = folder.rglob("*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        yield Record.FromString(data)
    store.close()


def test_weights_and_biases_without_its_server_is_ended_with_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = weights_and_biases(tmp_path, url="http://127.0.0.1:9")
    fed = feed(tracker)  # type: ignore[arg-type]
    fed.put(point(1))
    wait_for(lambda: tracker.child is not None, "its process", timeout=SECONDS)
    child = tracker.child
    assert child
    began = time.monotonic()
    close(fed, patience=0.5)
    assert child.poll() is not None
    assert time.monotonic() - began < SECONDS / 2
    assert warnings(caplog) == ["Weights & Biases at http://127.0.0.1:9 never got the last 1 measurements"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ('{"refused": "no key"}', TrackerRefusedError("no key")),
        ('{"away": "no route"}', TrackerAwayError("no route")),
        ("", TrackerAwayError("its process ended")),
    ],
)
def test_what_the_package_answers_is_understood(
    answer: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\nread line\nprintf %s '{answer}'\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(stand_in))
    tracker = weights_and_biases(tmp_path)
    with pytest.raises(type(error), match=str(error)):
        tracker.begin()
    tracker.abandon()


def test_the_package_gets_no_secrets_of_others(tmp_path: Path) -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "a", "MLFLOW_TRACKING_TOKEN": "b", "HF_TOKEN": "c"}
    assert not environ.keys() & weights_and_biases(tmp_path, **environ).environ.keys()
