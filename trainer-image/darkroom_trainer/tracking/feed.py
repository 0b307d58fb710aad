"""Brings measured points to one tracker, in a thread of its own: whatever the tracker does, training goes on.

Points wait in memory while a tracker does not answer, as many as fit; then the oldest are dropped. A tracker is never a
reason to fail: it gets one warning in the log when it goes away, and one if it refuses.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, Protocol

LOG: Final = logging.getLogger(__name__)

CAPACITY: Final = 20_000
"""Points that may wait, a few megabytes: an outage of hours at usual speeds."""
BATCH: Final = 200
"""Points that travel together."""
INTERVAL_SECONDS: Final = 5.0
"""Between two batches, so that a fast run does not send a request for every step."""
FIRST_PAUSE_SECONDS: Final = 2.0
LONGEST_PAUSE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run at its beginning."""

    run: str
    """The run id."""
    name: str
    """The resource's name."""
    namespace: str
    parameters: Mapping[str, str]
    """The spec, by dotted paths."""

    @property
    def title(self) -> str:
        """Return what people see: the name that the run has in the store as well."""
        return f"{self.name}-{self.run}"


@dataclass(frozen=True)
class Point:
    """What was measured after a step."""

    step: int
    time: float
    """Seconds since 1970."""
    values: Mapping[str, float]


class TrackerAwayError(Exception):
    """The tracker did not answer, or not now; asking again may help."""


class TrackerRefusedError(Exception):
    """The tracker does not want what it is sent, and never will."""


class Tracker(Protocol):
    """A client; its feed calls it from one thread only."""

    name: str

    def begin(self) -> None:
        """Open the run, or open it again where an earlier attempt left it.

        Raises:
            TrackerAwayError: It cannot be reached.
            TrackerRefusedError: It does not let us in.
        """

    def send(self, points: Sequence[Point]) -> None:
        """Hand over points in the order of their steps; those that an earlier attempt sent already are left out.

        Raises:
            TrackerAwayError: It cannot be reached; the same points will come again.
            TrackerRefusedError: It does not take them.
        """

    def end(self, outcome: str) -> None:
        """Close the run, which Succeeded, Failed or was Preempted.

        Raises:
            TrackerAwayError: It cannot be reached.
        """

    def abandon(self) -> None:
        """Let go of everything at once, from another thread, since time is over."""


class Feed:
    """A queue and the thread that empties it."""

    def __init__(
        self, tracker: Tracker, *, capacity: int = CAPACITY, interval: float = INTERVAL_SECONDS, pause: float = 0.0
    ) -> None:
        self._tracker, self._interval = tracker, interval
        self._first_pause = pause or FIRST_PAUSE_SECONDS
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Point]] = deque(maxlen=capacity)
        self._put = 0
        self._outcome: str | None = None
        self._is_away = self._is_over = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def put(self, point: Point) -> None:
        """Hand over a point; never waits."""
        with self._changed:
            if not self._is_over:
                self._put += 1
                self._waiting.append((self._put, point))  # in a full queue, the oldest makes room
                self._changed.notify_all()

    def finish(self, outcome: str) -> None:
        """Tell how the run ended: what is left is sent, then the tracker's run is closed."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def wait(self, patience: float) -> None:
        """Wait until that is done, for so many seconds at most."""
        self._thread.join(patience)
        with self._changed:
            self._is_over = True
            if self._waiting:
                LOG.warning("%s never got the last %d measurements", self._tracker.name, len(self._waiting))
        if self._thread.is_alive():
            self._tracker.abandon()

    def _work(self) -> None:
        try:
            if self._until_it_answers(self._tracker.begin):
                while points := self._next():
                    if not self._until_it_answers(partial(self._tracker.send, [point for _, point in points])):
                        return
                    self._sent(points[-1][0])
                self._tracker.end(self._outcome or "")
        except Exception as error:  # noqa: BLE001 - a tracker's failure must not become the run's
            with self._changed:
                if not self._is_over:
                    LOG.warning("%s gets no more of this run: %s", self._tracker.name, _told(error))
                self._is_over = True
                self._waiting.clear()

    def _until_it_answers(self, ask: Callable[[], None]) -> bool:
        """Ask until there is an answer; False if the run ended before."""
        pause = self._first_pause
        while True:
            try:
                ask()
            except TrackerAwayError as error:
                with self._changed:
                    if not (self._is_away or self._is_over):
                        LOG.warning("%s is away, the run goes on: %s", self._tracker.name, _told(error))
                    self._is_away = True
                    if self._outcome is not None or self._changed.wait_for(self._is_closing, pause):
                        return False
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            if self._is_away:
                LOG.info("%s answers again", self._tracker.name)
            self._is_away = False
            return True

    def _is_closing(self) -> bool:
        return self._outcome is not None

    def _next(self) -> list[tuple[int, Point]]:
        """Wait for points and return the first of them; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing())
            self._changed.wait_for(lambda: len(self._waiting) >= BATCH or self._is_closing(), self._interval)
            return list(islice(self._waiting, BATCH))

    def _sent(self, last: int) -> None:
        with self._changed:
            while self._waiting and self._waiting[0][0] <= last:
                self._waiting.popleft()


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, TrackerAwayError | TrackerRefusedError) else f"{type(error).__name__}: {text}"
