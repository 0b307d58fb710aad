"""Writes files beside the training: a save costs the loop a copy to host memory, not the encoding and the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """A thread that does one job after the other; what it is given must not change afterwards."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._last: Future[None] | None = None

    def hand_over(self, job: Callable[[], None]) -> None:
        """Begin a job as soon as the one before is done; so at most one copy of the weights waits in memory.

        Raises:
            Exception: What the job before raised.
        """
        self.wait()
        self._last = self._pool.submit(job)

    def wait(self) -> None:
        """Wait for the last job.

        Raises:
            Exception: What it raised.
        """
        if self._last is not None:
            last, self._last = self._last, None
            last.result()
