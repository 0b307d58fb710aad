"""Learning-rate schedules as pure functions of the step, so that there is no scheduler whose state could be lost."""

from __future__ import annotations

import math
from functools import singledispatch

from darkroom_api.schedules import Constant, Cosine


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
    return warmup(step, schedule.warmup_steps)


@schedule_factor.register
def _(schedule: Cosine, step: int, total_steps: int) -> float:
    if step < schedule.warmup_steps:
        return warmup(step, schedule.warmup_steps)
    descent = max(1, total_steps - 1 - schedule.warmup_steps)
    share = min(1.0, (step - schedule.warmup_steps) / descent)
    return schedule.minimum_factor + (1 - schedule.minimum_factor) * (1 + math.cos(math.pi * share)) / 2


def warmup(step: int, warmup_steps: int) -> float:
    """Return the linear rise; already the first step moves, since one at rate 0 would be wasted."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
