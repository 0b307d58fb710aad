"""A keyed work queue as in client-go: one worker per key at a time, however often the key is added.

Adding a key that waits is free; adding one that is being worked on makes it run once more afterwards. So events may
arrive in any number and order: what counts is the state that the worker then finds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """Keys to be worked on; all methods belong to one event loop."""

    def __init__(
        self,
        *,
        base: float = 0.2,
        maximum: float = 60.0,
        jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25),
    ) -> None:
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._dirty: set[K] = set()
        self._busy: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._base = base
        self._maximum = maximum
        self._jitter = jitter

    def __len__(self) -> int:
        return len(self._dirty)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being worked on."""
        return not self._dirty and not self._busy

    def add(self, key: K) -> None:
        """Ask for the key to be worked on as soon as possible."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._busy:
            self._ready.put_nowait(key)

    def add_after(self, key: K, delay: float) -> None:
        """Ask for the key to be worked on after some seconds; of several such requests the soonest counts."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer and timer.when() <= loop.time() + delay:
            return
        if timer:
            timer.cancel()
        self._timers[key] = loop.call_later(delay, self._expire, key)

    def retry(self, key: K) -> float:
        """Ask for the key to be worked on after a pause that doubles with each failure, and return the pause."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(self._maximum, self._base * 2 ** min(failures - 1, 32)) * self._jitter()
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """Begin with short pauses again: the key was worked on with success."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Wait for a key; whoever gets it must call `done` with it."""
        key = await self._ready.get()
        self._dirty.discard(key)
        self._busy.add(key)
        return key

    def done(self, key: K) -> None:
        """Tell that the work on the key is over; it runs again if it was added meanwhile."""
        self._busy.discard(key)
        if key in self._dirty:
            self._ready.put_nowait(key)

    def _expire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
