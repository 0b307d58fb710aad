"""Runs a trainer's program and reads its steps from the progress bar that it draws on standard error."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_BAR = re.compile(rb"steps:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[", re.IGNORECASE)


@dataclass(frozen=True)
class Moment:
    """When a step was done, and what the program had cost by then."""

    step: int
    wall: float
    processor: float


@dataclass(frozen=True)
class Watched:
    """A program that ran to its end."""

    first_step: float
    """Seconds from its start to the end of its first step."""
    wall_per_step: float
    processor_per_step: float
    """Seconds of one core."""
    memory_bytes: int
    """The most that its process took."""


def steps_in(text: bytes) -> list[int]:
    """Return the numbers of steps that a piece of output tells."""
    return [int(match[1]) for match in _BAR.finditer(text)]


def watch(command: Sequence[str], *, environ: Mapping[str, str], directory: Path, log: Path, warm_up: int) -> Watched:
    """Run a program and measure its steps after the first few.

    Raises:
        RuntimeError: It failed, or told too few steps; with the end of what it said.
    """
    began, moments, rest = time.monotonic(), list[Moment](), b""
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, env=dict(environ), cwd=directory, stdout=file, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert child.stderr
        process = psutil.Process(child.pid)
        with child.stderr as bar:
            while piece := os.read(bar.fileno(), 65536):
                file.write(piece)
                rest = (rest + piece)[-4096:]
                step = max(steps_in(rest), default=0)
                if step > (moments[-1].step if moments else 0):
                    moments.append(Moment(step, time.monotonic() - began, _processor(process)))
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or len(moments) < 2:
        end = log.read_bytes()[-3000:].decode(errors="replace")
        raise RuntimeError(f"{command[1]} ended with {child.returncode} after {len(moments)} steps\n{end}")
    return _between(moments, warm_up=warm_up, memory_bytes=used.ru_maxrss * 1024)


def _between(moments: Sequence[Moment], *, warm_up: int, memory_bytes: int) -> Watched:
    first = next((it for it in moments[:-1] if it.step >= warm_up), moments[-2])
    last = moments[-1]
    steps = last.step - first.step
    return Watched(
        moments[0].wall, (last.wall - first.wall) / steps, (last.processor - first.processor) / steps, memory_bytes
    )


def _processor(process: psutil.Process) -> float:
    """Return the seconds of one core that a program and its children have taken."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
