"""How fast a run is and when it will end: pure arithmetic over what was measured.

The end counts everything between steps (sampling, saving, uploading) at what it took per epoch so far.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

WINDOW: Final = 50
"""Steps over which speed and loss are averaged: smooth enough to read, short enough to follow a change."""


@dataclass
class Pace:
    """Measures of a run; every time is given by the caller."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    last_step_at: float | None = None
    running_gap: float = 0.0
    """Seconds between steps in the epoch being trained."""
    gaps: list[float] = field(default_factory=list)
    """The same of each whole epoch."""
    before_first: float | None = None
    """Seconds of sampling before the first step; the first guess of what an epoch's end takes."""
    epoch: int = 0

    def stepped(self, *, epoch: int, loss: float, seconds: float, now: float) -> None:
        """Count a step that ended now and took so long."""
        if self.last_step_at is not None:
            self.running_gap += max(0.0, now - seconds - self.last_step_at)
        if epoch != self.epoch:
            if self.epoch:
                self.gaps.append(self.running_gap)
            self.epoch, self.running_gap = epoch, 0.0
        self.last_step_at = now
        if math.isfinite(seconds) and seconds > 0:
            self.seconds.append(seconds)
        if math.isfinite(loss):
            self.losses.append(loss)

    @property
    def loss(self) -> float | None:
        """Return the mean loss of the last steps."""
        return math.fsum(self.losses) / len(self.losses) if self.losses else None

    @property
    def steps_per_second(self) -> float | None:
        """Return the speed over the last steps."""
        return len(self.seconds) / math.fsum(self.seconds) if self.seconds else None

    @property
    def seconds_between_epochs(self) -> float:
        """Return what is spent outside steps in an epoch, its end included."""
        if self.gaps:
            return math.fsum(self.gaps) / len(self.gaps)
        return max(self.before_first or 0.0, self.running_gap)

    @property
    def is_settled(self) -> bool:
        """Tell whether enough steps were measured to speak for a whole run."""
        return len(self.seconds) == WINDOW

    def whole(self, *, steps: int, epochs: int) -> float | None:
        """Return the seconds that so many steps in so many epochs take, or None before anything was measured."""
        speed = self.steps_per_second
        return None if speed is None else steps / speed + epochs * self.seconds_between_epochs

    def remaining(self, *, steps: int, epoch_ends: int, now: float) -> float | None:
        """Return the seconds to the end, or None before anything was measured.

        Args:
            steps: Optimizer steps still to do.
            epoch_ends: Epochs that have not ended, the one being trained included.
            now: The time; what has passed since the last step is taken off.
        """
        total, since = self.whole(steps=steps, epochs=epoch_ends), self.last_step_at
        return None if total is None or since is None else max(0.0, total - (now - since))
