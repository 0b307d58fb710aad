"""What both pretrainings share: a schedule, an average of weights, states on disk, a line with the time left."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Cosine:
    """A learning rate that warms up over `warmup` steps and falls to `floor` of itself at the end of the budget."""

    peak: float
    warmup: int
    floor: float = 0.03

    def at(self, step: int, *, share: float) -> float:
        """Return the rate at a step when `share` of the whole budget is spent."""
        fall = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        return self.peak * min(1.0, (step + 1) / self.warmup) * fall


class Average:
    """An exponential moving average of weights, warmed up so that the random start is forgotten at once."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float) -> None:
        self.decay = decay
        self.weights = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter], *, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.weights, [parameter.detach() for parameter in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        for weight, parameter in zip(self.weights, parameters, strict=True):
            parameter.copy_(weight)


@dataclass
class Budget:
    """Seconds of processor time that survive restarts; the learning rate follows the share of them that is spent.

    Not seconds of the day: on a machine shared with others, those would buy a different model each time.
    """

    seconds: float
    spent: float = 0.0
    work_clock: Callable[[], float] = time.process_time
    wall_clock: Callable[[], float] = time.monotonic
    work: float = 0.0
    wall: float = 0.0
    last: tuple[float, float] | None = field(default=None)

    def tick(self) -> float:
        """Count the time since the last tick and return the share of the budget that is spent."""
        now = (self.work_clock(), self.wall_clock())
        if self.last is not None:
            self.work += now[0] - self.last[0]
            self.wall += now[1] - self.last[1]
            self.spent += now[0] - self.last[0]
        self.last = now
        return self.share

    @property
    def share(self) -> float:
        return self.spent / self.seconds

    @property
    def left(self) -> float:
        """Estimate the seconds of the day until the end, at the share of the processor that this process was given."""
        return max(self.seconds - self.spent, 0.0) * (self.wall / self.work if self.work else 1.0)


def say(stage: str, step: int, *, budget: Budget, losses: list[float]) -> None:
    """Print one line of progress; seconds per step are of work."""
    mean = sum(losses) / max(len(losses), 1)
    print(
        f"{stage}: step {step}, {budget.share:4.0%}, loss {mean:.4f}, {budget.spent / max(step, 1):.2f} s/step, "
        f"{budget.left // 60:.0f}m{budget.left % 60:02.0f}s left",
        flush=True,
    )


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state so that a kill at any moment leaves the old or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a state, or None where there is none yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state
