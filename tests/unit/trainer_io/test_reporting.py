from __future__ import annotations

import json
import logging
import math
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from darkroom_api.memory import Adaptation, Memory
from darkroom_api.progress import (
    MAXIMUM_ADVICE,
    MAXIMUM_PROGRESS_BYTES,
    Bucket,
    CheckpointRecord,
    EarlyStop,
    Plan,
    Progress,
    Stage,
)
from darkroom_trainer import serving
from darkroom_trainer.metrics import exposition
from darkroom_trainer.reporting import MAXIMUM_CHECKPOINTS, Reporter, clock_time
from darkroom_trainer.serving import Server, serve

START = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = Plan(images=15, buckets=[Bucket(width=512, height=512, images=300)], steps_per_epoch=10, total_steps=30)


class Time:
    """One clock for both of a reporter's."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def reporter(time: Time) -> Reporter:
    return Reporter("0123456789", "anna-0", clock=time.clock, now=time.now)


def record(epoch: int, samples: int = 0, loss: float | None = None) -> CheckpointRecord:
    return CheckpointRecord(
        epoch=epoch, step=epoch * 10, sha256="a" * 64, size_bytes=1000, num_samples=samples, validation_loss=loss
    )


def train(reporter: Reporter, time: Time, *, steps: range, loss: float = 0.5) -> None:
    for step in steps:
        time.seconds += 2
        reporter.stepped(epoch=1 + (step - 1) // 10, step=step, loss=loss, learning_rate=1e-4, seconds=2)


def metrics(reporter: Reporter) -> dict[str, float]:
    families = text_string_to_metric_families(exposition(reporter).decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_report_is_whole_from_the_first_moment(reporter: Reporter) -> None:
    told = reporter.snapshot()
    assert (told.stage, told.step, told.epoch, told.updated) == (Stage.STARTING, 0, 0, START)
    assert (told.loss, told.estimated_remaining_seconds, told.plan) == (None, None, None)
    assert "darkroom_training_step" in metrics(reporter)


def test_a_report_follows_the_training(reporter: Reporter, time: Time) -> None:
    reporter.planned(PLAN)
    reporter.stage(Stage.SAMPLING)
    time.seconds += 8
    reporter.stage(Stage.TRAINING)
    train(reporter, time, steps=range(1, 6))
    told = reporter.snapshot()
    assert (told.epoch, told.step, told.loss, told.learning_rate) == (1, 5, 0.5, 1e-4)
    assert told.steps_per_second == pytest.approx(0.5)
    assert told.estimated_remaining_seconds == 25 * 2 + 3 * 8
    assert told.updated == time.now()
    assert reporter.epochs_done == 0


def test_nothing_new_leaves_the_report_as_it_was(reporter: Reporter, time: Time) -> None:
    before = reporter.snapshot()
    time.seconds += 100
    assert reporter.snapshot() == before


def test_a_loss_that_is_no_number_is_never_told(reporter: Reporter) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        reporter.stepped(epoch=1, step=1, loss=bad, learning_rate=bad, seconds=bad)
    text = reporter.snapshot().model_dump_json(by_alias=True)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert reporter.snapshot().loss is None
    assert Progress.model_validate_json(text)
    assert not any(math.isnan(value) or math.isinf(value) for value in metrics(reporter).values())


def test_the_store_being_away_is_shown_until_it_is_back(reporter: Reporter) -> None:
    reporter.stage(Stage.TRAINING, "as usual")
    reporter.storage_away("Waiting for the store. uploading x: connection refused")
    assert "connection refused" in reporter.snapshot().message
    assert metrics(reporter)["darkroom_training_storage_failures_total"] == 1
    reporter.storage_back()
    assert reporter.snapshot().message == "as usual"


def test_checkpoints_are_told_once_each_and_in_order(reporter: Reporter, time: Time) -> None:
    for epoch in (2, 1, 2):
        reporter.checkpointed(record(epoch), fresh=True)
    reporter.checkpointed(record(2, samples=4))
    time.seconds += 30
    assert [(one.epoch, one.num_samples) for one in reporter.snapshot().checkpoints] == [(1, 0), (2, 4)]
    assert metrics(reporter)["darkroom_training_checkpoint_age_seconds"] == 30
    assert "darkroom_training_state_age_seconds" not in metrics(reporter)


def test_an_epoch_is_best_only_once_its_checkpoint_is_in_the_store(reporter: Reporter) -> None:
    reporter.validated(0, 0.1)
    assert (reporter.snapshot().validation_loss, reporter.snapshot().best_epoch) == (0.1, None)
    reporter.checkpointed(record(1, loss=0.5), fresh=True)
    reporter.validated(2, 0.3)
    told = reporter.snapshot()
    assert (told.validation_loss, told.best_epoch) == (0.3, 1)
    reporter.checkpointed(record(2, loss=0.3), fresh=True)
    assert reporter.snapshot().best_epoch == 2
    found = metrics(reporter)
    assert (found["darkroom_training_validation_loss"], found["darkroom_training_best_epoch"]) == (0.3, 2)


def test_a_resumed_run_tells_the_whole_curve(reporter: Reporter) -> None:
    """The state knows epochs without a checkpoint; the store may know a checkpoint that the state does not."""
    reporter.checkpointed(record(3, loss=0.2))
    reporter.restored(epoch=2, step=20, validations={0: 0.9, 1: 0.5, 2: 0.4})
    assert reporter.validations() == {0: 0.9, 1: 0.5, 2: 0.4, 3: 0.2}
    assert list(reporter.validations()) == [0, 1, 2, 3]
    assert reporter.best_epoch == 3


def test_a_run_that_stops_early_has_no_step_outstanding(reporter: Reporter, time: Time) -> None:
    reporter.planned(PLAN)
    train(reporter, time, steps=range(1, 21))
    assert reporter.snapshot().estimated_remaining_seconds == 20
    reporter.stopped_early(EarlyStop(epoch=2, validations=1))
    told = reporter.snapshot()
    assert told.plan
    assert (told.plan.total_steps, told.plan.steps_per_epoch) == (20, 10)
    assert told.estimated_remaining_seconds == 0
    assert reporter.early_stop == EarlyStop(epoch=2, validations=1)


def test_the_first_guess_of_an_epochs_end_counts_validation_and_samples(reporter: Reporter, time: Time) -> None:
    reporter.planned(PLAN)
    for stage, seconds in ((Stage.VALIDATING, 5), (Stage.SAMPLING, 8), (Stage.TRAINING, 0)):
        reporter.stage(stage)
        time.seconds += seconds
    train(reporter, time, steps=range(1, 2))
    assert reporter.snapshot().estimated_remaining_seconds == 29 * 2 + 3 * 13


def test_the_plan_tells_once_how_long_it_takes(reporter: Reporter, time: Time) -> None:
    reporter.planned(Plan(images=15, steps_per_epoch=20, total_steps=200))
    for epoch in range(1, 11):
        steps = range(20 * (epoch - 1) + 1, 20 * epoch + 1)
        for step in steps:
            plan = reporter.snapshot().plan
            assert plan
            assert (plan.estimated_seconds is None) == (step <= 50)
            time.seconds += 2
            reporter.stepped(epoch=epoch, step=step, loss=0.5, learning_rate=1e-4, seconds=2)
        time.seconds += 7
    assert reporter.plan
    assert reporter.plan.estimated_seconds == 200 * 2 + 10 * 7
    reporter.stopped_early(EarlyStop(epoch=5, validations=1))
    assert reporter.plan.estimated_seconds == (200 * 2 + 10 * 7) // 2


def test_advice_stands_in_the_log(reporter: Reporter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reporter.planned(PLAN.model_copy(update={"advice": ["Give more pictures.", "Raise alpha."]}))
    assert caplog.messages[1:] == ["Advice: Give more pictures.", "Advice: Raise alpha."]


def test_a_report_stays_within_what_the_operator_reads(reporter: Reporter) -> None:
    buckets = [Bucket(width=65536, height=65536, images=10**9)] * 512
    advice = ["\u00e9" * 400] * MAXIMUM_ADVICE
    reporter.planned(Plan(images=10**9, buckets=buckets, steps_per_epoch=10**9, total_steps=10**12, advice=advice))
    reporter.stage(Stage.TRAINING, "\u00e9" * 2000)
    for epoch in range(10_000):
        reporter.checkpointed(
            CheckpointRecord(
                epoch=epoch,
                step=10**12,
                sha256="a" * 64,
                size_bytes=10**12,
                num_samples=256,
                validation_loss=0.1234567890123456,
            )
        )
    told = reporter.snapshot()
    assert len(told.checkpoints) == MAXIMUM_CHECKPOINTS
    assert told.checkpoints[-1].epoch == 9999
    assert len(told.model_dump_json(by_alias=True).encode()) < MAXIMUM_PROGRESS_BYTES
    assert len(reporter.records()) == 10_000


def test_transfers_count_bytes_even_when_they_start_again(reporter: Reporter) -> None:
    progressed = reporter.transfer("base model")
    for done in (10, 50, 0, 60):
        progressed(done * 10**6, 4000 * 10**6)
    assert reporter.snapshot().message == "base model: 60 of 4000 MB"
    assert reporter.counters().downloaded_bytes == 110 * 10**6


def test_progress_lines_come_by_share_and_by_time(
    reporter: Reporter, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.planned(Plan(images=1, buckets=[], steps_per_epoch=1000, total_steps=1000))
    caplog.set_level(logging.INFO)
    caplog.clear()
    for step in range(1, 1001):
        time.seconds += 0.001
        reporter.stepped(epoch=1, step=step, loss=0.5, learning_rate=1e-4, seconds=0.001)
    assert len(caplog.messages) == 20
    assert caplog.messages[0].startswith("epoch 1, step 50/1000, loss 0.5000, lr 0.0001, 1000.00 steps/s, ")
    caplog.clear()
    time.seconds += 11
    reporter.stepped(epoch=1, step=1001, loss=0.5, learning_rate=1e-4, seconds=11)
    assert len(caplog.messages) == 1


def test_threads_do_not_disturb_each_other(reporter: Reporter) -> None:
    def work(offset: int) -> None:
        for step in range(200):
            reporter.stepped(epoch=1, step=step, loss=0.5, learning_rate=0, seconds=1)
            reporter.checkpointed(record(offset * 200 + step))
            reporter.uploaded(1)
            reporter.snapshot()

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reporter.counters().uploaded_bytes == 800
    assert len(reporter.records()) == 800


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_times_read_like_a_clock(seconds: float, shown: str) -> None:
    assert clock_time(seconds) == shown


@pytest.fixture
def server(reporter: Reporter) -> Iterator[Server]:
    running = serve(reporter, 0, host="127.0.0.1")
    yield running
    running.close()


def get(server: Server, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", b""


def test_three_pages_are_served_and_no_other(server: Server, reporter: Reporter) -> None:
    status, kind, body = get(server, "/progress")
    assert (status, kind) == (200, "application/json")
    assert Progress.model_validate_json(body) == reporter.snapshot()
    assert json.loads(body)["run"] == "0123456789"
    status, kind, body = get(server, "/metrics?name[]=x")
    assert (status, body) == (200, exposition(reporter))
    assert kind.startswith("text/plain; version=0.0.4")
    assert get(server, "/healthz")[2] == b"ok\n"
    assert get(server, "/etc/passwd")[0] == 404
    assert get(server, "/")[0] == 404


def test_a_silent_connection_holds_nobody_up(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.send(b"GET /progr")
        assert get(server, "/healthz")[0] == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_families_of_addresses_are_served(address: str, reporter: Reporter) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as here:
            here.bind((address, 0))
    except OSError:
        pytest.skip(f"this machine has no {address}")
    running = serve(reporter, 0)
    try:
        with socket.create_connection((address, running.port), timeout=10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert connection.makefile("rb").read().endswith(b"ok\n")
    finally:
        running.close()


def test_without_ipv6_it_is_ipv4_alone(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving._DualStackServer, "address_family", -1)  # as a kernel without IPv6 answers
    running = serve(reporter, 0)
    try:
        assert get(running, "/healthz")[0] == 200
    finally:
        running.close()


def test_what_is_done_for_lack_of_memory_is_reported_and_moves_the_time_once(reporter: Reporter, time: Time) -> None:
    assert reporter.snapshot().memory is None
    reporter.adapted(Adaptation())
    assert reporter.snapshot().memory == Memory()
    time.seconds = 5
    reporter.adapted(Adaptation(micro_batch=2))
    time.seconds = 9
    reporter.adapted(Adaptation(micro_batch=2))
    told = reporter.snapshot()
    assert told.memory == Memory(adaptation=Adaptation(micro_batch=2))
    assert told.updated == START + timedelta(seconds=5)
