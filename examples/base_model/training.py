"""What both pretrainings share: a schedule, a run with its average of weights and its state on disk, progress."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.base_model.muon import Optimizer

REPORT_EVERY = 50
MAXIMUM_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Schedule:
    """Warm up, hold, and fall over the last share of the steps by 1 - sqrt (Haegele et al., 2024).

    Until the fall begins nothing depends on the number of steps: a training that is given more of them before that
    goes on as if it had them from the start.
    """

    steps: int
    warmup: int = 60
    fall: float = 0.3

    def factor(self, step: int) -> float:
        """Return the share of the peak rate at a step."""
        falling = (step - self.steps * (1 - self.fall)) / (self.steps * self.fall)
        return min(1.0, (step + 1) / self.warmup) * (1 - math.sqrt(min(max(falling, 0.0), 1.0)))


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
class Run:
    """A module in training; everything that a step depends on is in its state or follows from the step's number."""

    name: str
    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    average: Average
    step: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [it for it in self.module.parameters() if it.requires_grad]

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.weights,
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.weights, self.step = state["average"], state["step"]

    def take(self, loss: torch.Tensor) -> None:
        """Move by one step down a loss."""
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, MAXIMUM_GRADIENT_NORM)
        self.optimizer.step(factor=self.schedule.factor(self.step))
        self.average.update(self.parameters, step=self.step)
        self.losses.append(float(loss.detach()))
        self.step += 1


def ignore(run: Run) -> None:
    """Do nothing."""


def run_to_end(
    run: Run,
    state_path: Path,
    loss: Callable[[int], torch.Tensor],
    *,
    save_every: int,
    after_step: Callable[[Run], None] = ignore,
) -> None:
    """Train to the schedule's end, or go on from `state_path`; leave the averaged weights in the module.

    Args:
        run: What is trained.
        state_path: Where the state lies and is kept.
        loss: Makes the loss of a step from its number alone, so that a resumed training equals an undisturbed one.
        save_every: Steps between two saves of the state.
        after_step: Called after each step, and after the save that follows it.
    """
    if state := load_state(state_path):
        run.restore(state)
    began, first = time.monotonic(), run.step
    while run.step < run.schedule.steps:
        run.take(loss(run.step))
        if run.step % REPORT_EVERY == 0 or run.step == run.schedule.steps:
            say(run, seconds_per_step=(time.monotonic() - began) / (run.step - first))
        if run.step % save_every == 0 or run.step == run.schedule.steps:
            save_state(state_path, run.state())
        after_step(run)
    run.average.copy_to(run.parameters)
    run.module.eval()


def say(run: Run, *, seconds_per_step: float) -> None:
    """Print one line of progress."""
    recent = run.losses[-REPORT_EVERY:]
    left = (run.schedule.steps - run.step) * seconds_per_step
    print(
        f"{run.name}: step {run.step} of {run.schedule.steps}, loss {sum(recent) / len(recent):.4f}, "
        f"{seconds_per_step:.2f} s/step, {left // 60:.0f}m{left % 60:02.0f}s left",
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
