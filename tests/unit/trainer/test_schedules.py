"""Schedules: tables by hand, and equality with transformers' and torch's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import optimization

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
from darkroom_trainer.schedules import schedule_factor, warmup_steps

PEAK = 0.5
TOTAL = 23


def ours(schedule: Schedule, total: int = TOTAL) -> list[float]:
    return [schedule_factor(schedule, step, total) for step in range(total)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1, 1, 1, 1, 1]),
        (Constant(warmup_steps=4), [0, 0.25, 0.5, 0.75, 1]),
        (Constant(warmup_ratio=0.5), [0, 1 / 3, 2 / 3, 1, 1]),  # of 5 steps: 2.5, rounded up
        (Constant(warmup_steps=10), [0, 0.1, 0.2, 0.3, 0.4]),
        (Linear(), [1, 0.8, 0.6, 0.4, 0.2]),
        (Linear(warmup_steps=1, minimum_factor=0.2), [0, 1, 0.8, 0.6, 0.4]),
        (Cosine(warmup_steps=1), [0, 1, 0.853553, 0.5, 0.146447]),
        (Cosine(warmup_steps=1, minimum_factor=0.5), [0, 1, 0.926777, 0.75, 0.573223]),
        (CosineWithRestarts(warmup_steps=1, cycles=2), [0, 1, 0.5, 1, 0.5]),
        (CosineWithRestarts(warmup_steps=1, cycles=2, minimum_factor=0.2), [0, 1, 0.6, 1, 0.6]),
        (Polynomial(warmup_steps=1, power=2), [0, 1, 0.5625, 0.25, 0.0625]),
        (Polynomial(warmup_steps=1, power=2, minimum_factor=0.2), [0, 1, 0.65, 0.4, 0.25]),
        (REX(warmup_steps=1), [0, 1, 0.857143, 0.666667, 0.4]),  # z / (1/2 + z/2) of 1, 3/4, 1/2, 1/4
        (REX(warmup_steps=1, minimum_factor=0.4), [0, 1, 0.914286, 0.8, 0.64]),
        (OneCycle(rise=0.6, initial_divisor=2, final_divisor=5), [0.5, 0.75, 1, 0.55, 0.1]),
    ],
    ids=lambda it: it.type if hasattr(it, "type") else "",
)
def test_five_steps_by_hand(schedule: Schedule, expected: list[float]) -> None:
    assert ours(schedule, 5) == pytest.approx(expected, abs=1e-6)


def scheduled(make: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    """Return the factors that a scheduler of torch's kind gives."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=PEAK)
    scheduler = make(optimizer)
    factors = []
    for _ in range(TOTAL):
        factors.append(optimizer.param_groups[0]["lr"] / PEAK)
        optimizer.step()
        scheduler.step()
    return factors


WARM = {"num_warmup_steps": 5, "num_training_steps": TOTAL}


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (
            Constant(warmup_steps=5),
            functools.partial(optimization.get_constant_schedule_with_warmup, num_warmup_steps=5),
        ),
        (Linear(warmup_steps=5), functools.partial(optimization.get_linear_schedule_with_warmup, **WARM)),
        (Cosine(warmup_steps=5), functools.partial(optimization.get_cosine_schedule_with_warmup, **WARM)),
        (
            Cosine(warmup_steps=5, minimum_factor=0.1),
            functools.partial(optimization.get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1, **WARM),
        ),
        (
            CosineWithRestarts(warmup_steps=5, cycles=3),
            functools.partial(optimization.get_cosine_with_hard_restarts_schedule_with_warmup, num_cycles=3, **WARM),
        ),
        (
            Polynomial(warmup_steps=5, power=1.7, minimum_factor=0.02),
            functools.partial(
                optimization.get_polynomial_decay_schedule_with_warmup, lr_end=0.02 * PEAK, power=1.7, **WARM
            ),
        ),
    ],
    ids=lambda it: it.type if hasattr(it, "type") else "",
)
def test_transformers_has_the_same(schedule: Schedule, theirs: Callable[[torch.optim.Optimizer], Any]) -> None:
    assert ours(schedule) == pytest.approx(scheduled(theirs), abs=1e-12)


@pytest.mark.parametrize(("rise", "initial", "final"), [(0.3, 25.0, 1e4), (0.5, 10.0, 2.0), (0.04, 3.0, 7.0)])
def test_torch_has_the_same_one_cycle(rise: float, initial: float, final: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=PEAK,
        total_steps=TOTAL,
        pct_start=rise,
        cycle_momentum=False,
        div_factor=initial,
        final_div_factor=final,
    )
    factors = [optimizer.param_groups[0]["lr"] / PEAK]
    for _ in range(TOTAL - 1):
        optimizer.step()
        scheduler.step()
        factors.append(optimizer.param_groups[0]["lr"] / PEAK)
    schedule = OneCycle(rise=rise, initial_divisor=initial, final_divisor=final)
    assert ours(schedule) == pytest.approx(factors, abs=1e-12)


@pytest.mark.parametrize("schedule", [Constant(), Linear(), Cosine(), CosineWithRestarts(), Polynomial(), REX()])
def test_a_run_of_one_step_has_the_peak(schedule: Schedule) -> None:
    assert ours(schedule, 1) == [1]


def test_a_run_of_one_step_in_one_cycle_has_a_rate() -> None:
    assert 0 < ours(OneCycle(), 1)[0] <= 1


def test_warmup_as_a_share_is_rounded_up_as_transformers_does() -> None:
    assert [warmup_steps(Linear(warmup_ratio=ratio), 10) for ratio in (0, 0.1, 0.11, 1)] == [0, 1, 2, 10]
    assert warmup_steps(Linear(warmup_steps=3), 10) == 3
    assert warmup_steps(OneCycle(), 10) == 0
