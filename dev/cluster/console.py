"""What a person sees: one line for each stage, with the time it took, and how long the long ones usually take."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn


class ClusterError(Exception):
    """Something the person at the keyboard has to know or do; the text is the whole message."""


def say(text: str) -> None:
    """Print one line to standard error: standard output belongs to what a command is asked for."""
    print(text, file=sys.stderr, flush=True)


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)


def unwind_when_terminated() -> None:
    """Have a SIGTERM unwind this process like an error, so that what is half done is cleared away."""
    signal.signal(signal.SIGTERM, _terminated)


@contextmanager
def stage(what: str, *, usual: str = "") -> Iterator[None]:
    """Print what begins, and when it ends the seconds it took."""
    hint = f" (usually {usual})" if usual else ""
    print(f"  {what}{hint} … ", end="", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"failed after {time.monotonic() - start:.1f} s")
        raise
    say(f"{time.monotonic() - start:.1f} s")


def tail(log: Path, *, lines: int = 15) -> str:
    """Return the last lines of a log, indented; only its end is read, since a log may be large."""
    if not log.exists():
        return "    (no log was written)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64 * 1024))
        text = file.read().decode(errors="replace")
    return "\n".join(f"    {line[:400]}" for line in text.splitlines()[-lines:]) or "    (the log is empty)"
