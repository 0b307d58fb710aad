"""Wait for a condition with a deadline, and give up at once when what is waited for can no longer happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from dev.cluster.console import ClusterError

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T | None],
    what: str,
    *,
    timeout: float,
    pause: float = 0.1,
    check: Callable[[], None] = lambda: None,
) -> T:
    """Return the condition's first true value.

    `check` is called between attempts and raises when waiting is pointless, such as when the process has ended.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        check()
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not so after {timeout:.0f} s")
        time.sleep(pause)
