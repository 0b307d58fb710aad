"""Programs are started, recognised and ended exactly: a reused pid or a zombie is nobody."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from dev.cluster.console import ClusterError
from dev.cluster.processes import Supervisor, boot_id, is_alive, marked_processes, start_ticks
from dev.cluster.waiting import wait_for

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
)


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    return Supervisor(tmp_path / "records", tmp_path / "logs", tied=True)


def wait_up(tmp_path: Path, name: str) -> None:
    log = tmp_path / "logs" / f"{name}.log"
    wait_for(lambda: log.exists() and "up" in log.read_text(), f"{name} is up", timeout=20, pause=0.01)


def test_a_program_is_recorded_and_ended(supervisor: Supervisor, tmp_path: Path) -> None:
    record = supervisor.start("one", SLEEP)
    assert is_alive(record)
    assert supervisor.records() == [record]
    wait_up(tmp_path, "one")
    assert (record.pid, record.start_ticks) in list(marked_processes(supervisor.mark))
    supervisor.stop("one")
    assert not is_alive(record)
    assert supervisor.records() == []
    supervisor.stop("one")


def test_a_program_that_ignores_the_request_is_killed(supervisor: Supervisor, tmp_path: Path) -> None:
    record = supervisor.start("stubborn", STUBBORN)
    wait_up(tmp_path, "stubborn")
    supervisor.stop("stubborn", grace=0.05)
    assert start_ticks(record.pid) is None


@pytest.mark.parametrize(
    "change",
    [{"start_ticks": 1}, {"boot": "another"}, {"argv": ("/bin/other",)}, {"pid": 1}],
    ids=lambda change: next(iter(change)),
)
def test_a_reused_pid_is_not_the_recorded_program(
    supervisor: Supervisor, tmp_path: Path, change: dict[str, object]
) -> None:
    record = supervisor.start("one", SLEEP)
    wait_up(tmp_path, "one")
    other = dataclasses.replace(record, **change)  # type: ignore[arg-type]
    assert not is_alive(other)
    supervisor.stop("one")


def test_a_stale_record_signals_nobody(supervisor: Supervisor, tmp_path: Path) -> None:
    record = supervisor.start("one", SLEEP)
    wait_up(tmp_path, "one")
    path = tmp_path / "records" / "one.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "start_ticks": record.start_ticks - 1}))
    supervisor.stop("one")
    assert is_alive(record), "the pid belongs to somebody else now, as far as the record can tell"
    supervisor.stop_all(grace=1)
    assert not is_alive(record), "but it carries the mark"


def test_an_unreadable_record_does_not_hide_a_program(supervisor: Supervisor, tmp_path: Path) -> None:
    record = supervisor.start("one", SLEEP)
    (tmp_path / "records" / "one.json").write_text('{"name": "on')
    assert supervisor.records() == []
    supervisor.stop_all(grace=1)
    assert not is_alive(record)


def test_a_zombie_is_dead(supervisor: Supervisor) -> None:
    record = supervisor.start("one", SLEEP)
    os.kill(record.pid, signal.SIGKILL)
    os.waitid(os.P_PID, record.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{record.pid}").exists(), "nobody has taken its status yet"
    assert not is_alive(record)
    supervisor.stop("one")


def test_an_ended_program_is_reported_with_its_log(supervisor: Supervisor) -> None:
    record = supervisor.start("broken", (sys.executable, "-c", "raise SystemExit('no such luck')"))
    wait_for(lambda: not is_alive(record), "it has ended", timeout=20, pause=0.01)
    with pytest.raises(ClusterError, match=r"broken ended by itself[\s\S]*no such luck[\s\S]*broken\.log"):
        supervisor.check(record)


def test_the_boot_has_a_name() -> None:
    assert len(boot_id()) == 36
