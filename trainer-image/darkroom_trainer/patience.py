"""Waiting for a store that is away: jittered exponential backoff with an end.

botocore tries each request a few times within seconds; this is the layer above it, for outages of minutes.
Time, chance and what to tell whom are parameters, so that tests need no waiting.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from darkroom_trainer.s3_errors import STORE_ERRORS, Verdict, diagnose, failure

LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")

_LONGEST_NAP_SECONDS: Final = 0.5
"""A wait is cut into naps of this length, so that a request to stop is heeded at once."""


def _nothing() -> None:
    """Do nothing."""


def _silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Patience:
    """How long to try, and whom to ask and tell meanwhile."""

    total_seconds: float = 900.0
    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform
    check: Callable[[], None] = _nothing
    """Called before each attempt and while waiting; raises to give up early."""
    on_away: Callable[[str], None] = _silent
    """Called after each attempt that found the store away, with a sentence for a person."""
    on_back: Callable[[], None] = _nothing
    """Called when the store answers again."""

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after this many failed attempts in a row: half of it certain, half by chance."""
        ceiling = min(self.longest_seconds, self.first_seconds * 2.0 ** min(attempt - 1, 32))
        return self.uniform(ceiling / 2, ceiling)

    def run(self, operation: Callable[[], T], *, what: str, heard: Callable[[], float] = lambda: -math.inf) -> T:
        """Return what the operation returns, trying again as long as the store is away.

        The time counts from the first failure, and anew after an attempt in which the store did its part for long:
        a download of half an hour that breaks twice has met two short outages. How long an attempt took does not
        tell that, since a store may be silent for minutes until the read timeouts are over.

        Args:
            operation: A call to the store that may be repeated.
            what: What it does to which object, for messages.
            heard: When, by the clock, bytes last moved.

        Raises:
            RunError: The store answered with a refusal, or stayed away for the whole time.
        """
        since, attempt = math.inf, 0
        while True:
            self.check()
            began = self.clock()
            try:
                result = operation()
            except STORE_ERRORS as error:
                problem = diagnose(error)
                now = self.clock()
                if not attempt or heard() - began > self.longest_seconds:
                    since, attempt = now, 0
                attempt += 1
                elapsed = now - since
                if problem.verdict is not Verdict.AWAY:
                    raise failure(problem, what) from error
                if elapsed >= self.total_seconds:
                    tried = f"{what} (tried {attempt} times in {elapsed:.0f} s)"
                    raise failure(problem, tried) from error
            else:
                if attempt:
                    self.on_back()
                return result
            self._wait(attempt, left=self.total_seconds - elapsed, why=f"{what}: {problem.said}")

    def _wait(self, attempt: int, *, left: float, why: str) -> None:
        delay = min(self.delay(attempt), left)
        LOG.warning("%s; trying again in %.1f s, for %.0f s more", why, delay, left)
        self.on_away(f"Waiting for the store. {why}")
        while delay > 0:
            self.check()
            nap = min(delay, _LONGEST_NAP_SECONDS)
            self.sleep(nap)
            delay -= nap
