"""Learning-rate schedules as pure functions of the step, so that there is no scheduler whose state could be lost.

Steps count as in transformers and kohya: a warm-up begins at rate 0, and a descent would reach its end one step after
the run's last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch

from darkroom_api.schedules import (
    REX,
    Constant,
    Cosine,
    CosineWithRestarts,
    Linear,
    OneCycle,
    Polynomial,
    Schedule,
)

_Falling = Linear | Cosine | CosineWithRestarts | Polynomial | REX


@singledispatch
def schedule_factor(schedule: object, step: int, total_steps: int) -> float:
    """Return the share of the peak learning rate that a step has.

    Args:
        schedule: The spec's schedule.
        step: The step, from 0.
        total_steps: Steps of the whole run.
    """
    raise NotImplementedError(f"no schedule for {type(schedule).__name__}")


@schedule_factor.register
def _(schedule: Constant, step: int, total_steps: int) -> float:
    warmup = warmup_steps(schedule, total_steps)
    return step / warmup if step < warmup else 1.0


@schedule_factor.register
def _(schedule: Linear, step: int, total_steps: int) -> float:
    return _fall(schedule, step, total_steps, curve=lambda done: 1 - done)


@schedule_factor.register
def _(schedule: Cosine, step: int, total_steps: int) -> float:
    return _fall(schedule, step, total_steps, curve=_half_cosine)


@schedule_factor.register
def _(schedule: CosineWithRestarts, step: int, total_steps: int) -> float:
    def curve(done: float) -> float:
        return 0.0 if done >= 1 else _half_cosine(schedule.cycles * done % 1.0)

    return _fall(schedule, step, total_steps, curve=curve)


@schedule_factor.register
def _(schedule: Polynomial, step: int, total_steps: int) -> float:
    return _fall(schedule, step, total_steps, curve=lambda done: (1 - done) ** schedule.power)


@schedule_factor.register
def _(schedule: REX, step: int, total_steps: int) -> float:
    # Chen et al. 2021 (arXiv 2107.04197), section 4: (1 - z) / (1/2 + (1 - z) / 2).
    return _fall(schedule, step, total_steps, curve=lambda done: (1 - done) / (0.5 + 0.5 * (1 - done)))


@schedule_factor.register
def _(schedule: OneCycle, step: int, total_steps: int) -> float:
    """As torch's OneCycleLR with its two phases, whose turning point may lie between two steps."""
    first = 1 / schedule.initial_divisor
    last = first / schedule.final_divisor
    turn, end = schedule.rise * total_steps - 1, total_steps - 1
    if step <= turn:
        return _between(first, 1.0, share=step / turn if turn > 0 else 1.0)
    return _between(1.0, last, share=min(1.0, (step - turn) / (end - turn)) if end > turn else 1.0)


def warmup_steps(schedule: Schedule, total_steps: int) -> int:
    """Return how many steps the warm-up has: as given, or its share of all steps rounded up, as transformers does."""
    if isinstance(schedule, OneCycle):
        return 0
    if schedule.warmup_ratio is None:
        return schedule.warmup_steps
    return math.ceil(schedule.warmup_ratio * total_steps)


def _fall(schedule: _Falling, step: int, total_steps: int, *, curve: Callable[[float], float]) -> float:
    """Return the factor of a warm-up and a descent; the curve falls from 1 to 0 as its argument rises from 0 to 1."""
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return schedule.minimum_factor + (1 - schedule.minimum_factor) * curve(done)


def _half_cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _between(start: float, end: float, *, share: float) -> float:
    return end + (start - end) * _half_cosine(share)
