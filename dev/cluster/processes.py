"""Start programs that outlive this one, remember them exactly, and end those and no others.

A pid alone names nothing after a hard stop: the kernel hands it out again. A record therefore also holds the boot, the
start time in clock ticks and the program, and every signal is preceded by a comparison. Programs carry a mark in their
environment as well, so that one whose record was never written is still found.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dev.cluster.console import ClusterError, tail

MARK = "DARKROOM_PROCESS_OF"


@dataclass(frozen=True)
class Record:
    """One started program: enough to recognise it later."""

    name: str
    pid: int
    start_ticks: int
    boot: str
    argv: tuple[str, ...]
    log: str
    started_at: float


def boot_id() -> str:
    """Return the kernel's name for the time since it started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None if there is none or it is only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the program's name may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def command_line(pid: int) -> list[str]:
    """Return a process's arguments, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(record: Record) -> bool:
    """Tell whether exactly the recorded program still runs."""
    if record.boot != boot_id() or start_ticks(record.pid) != record.start_ticks:
        return False
    arguments = command_line(record.pid)
    return arguments in ([], [""]) or record.argv[0] in arguments  # empty for an instant while it is being loaded


def _reap(pid: int) -> None:
    """Take a dead child's status if it is ours; a child of an earlier run belongs to init."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def end_process(pid: int, ticks: int, *, grace: float) -> None:
    """Ask a process to end, then insist; return when it is gone.

    Waits on a pidfd, which costs nothing and is right even where init is slow to reap.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start_ticks(pid) != ticks:  # checked after the descriptor is held: now it cannot change hands
            _reap(pid)
            return
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if poll.poll(seconds * 1000):
                _reap(pid)
                return
    finally:
        os.close(descriptor)
    raise ClusterError(f"process {pid} does not end even when killed (see: cat /proc/{pid}/stack)")


def marked_processes(mark: str) -> Iterator[tuple[int, int]]:
    """Yield (pid, start ticks) of every process that was started, directly or not, with this mark."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                ticks = start_ticks(int(entry.name))
                if ticks is not None:
                    yield int(entry.name), ticks


class Supervisor:
    """Starts, records and ends the programs of one cluster."""

    def __init__(self, records: Path, logs: Path, *, tied: bool = False) -> None:
        """Keep records and logs in these directories; `tied` programs are killed when this process ends, however."""
        self._records = records
        self._logs = logs
        self._tied = tied

    @property
    def mark(self) -> str:
        return str(self._records)

    def start(self, name: str, argv: Iterable[str | Path], *, environment: Mapping[str, str] | None = None) -> Record:
        """Start a program in its own session, output to its log, and record it."""
        self._records.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        command = [str(argument) for argument in argv]
        launcher = ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--"] if self._tied else []
        log = self._logs / f"{name}.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        pid = os.posix_spawn(
            (launcher + command)[0],
            launcher + command,
            {**os.environ, **(environment or {}), MARK: self.mark},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
        )
        record = Record(name, pid, start_ticks(pid) or 0, boot_id(), tuple(command), str(log), time.time())
        path = self._records / f"{name}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(record)))
        temporary.rename(path)
        return record

    def records(self) -> list[Record]:
        """Return every recorded program, dead or alive, in the order they were started."""
        found = []
        for path in self._records.glob("*.json"):
            with suppress(
                OSError, ValueError, TypeError
            ):  # a hard stop may leave half a file: its process still has its mark
                values = json.loads(path.read_text())
                found.append(Record(**{**values, "argv": tuple(values["argv"])}))
        return sorted(found, key=lambda record: record.started_at)

    def find(self, name: str) -> Record | None:
        """Return the record of that name, if there is one."""
        return next((record for record in self.records() if record.name == name), None)

    def check(self, record: Record) -> None:
        """Raise with the end of its log if a program has ended."""
        if is_alive(record):
            return
        _reap(record.pid)
        raise ClusterError(
            f"{record.name} ended by itself. The last lines of its log:\n{tail(Path(record.log))}\n"
            f"  The whole log: {record.log}\n  Its command line: {' '.join(record.argv)}"
        )

    def stop(self, name: str, *, grace: float = 10.0) -> None:
        """End one program and forget it; nothing happens if it is not there."""
        record = self.find(name)
        if record is None:
            return
        if is_alive(record):
            end_process(record.pid, record.start_ticks, grace=grace)
        else:
            _reap(record.pid)
        (self._records / f"{name}.json").unlink(missing_ok=True)

    def stop_all(self, *, grace: float = 10.0) -> None:
        """End every program, the last started first, then whatever else carries the mark."""
        for record in reversed(self.records()):
            self.stop(record.name, grace=grace)
        for pid, ticks in marked_processes(self.mark):
            end_process(pid, ticks, grace=0.0)
