from __future__ import annotations

import math

import pytest

from darkroom_trainer.pace import WINDOW, Pace


def run(pace: Pace, *, epochs: int, steps: int, seconds: float, between: float, start: float = 0.0) -> float:
    """Train in an ideal world: every step and every epoch's end takes the same; return the time at the last step."""
    now = start
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            now += seconds
            pace.stepped(epoch=epoch, loss=0.5, seconds=seconds, now=now)
        if epoch < epochs:
            now += between
    return now


def test_nothing_is_promised_before_anything_was_measured() -> None:
    pace = Pace()
    assert (pace.loss, pace.steps_per_second) == (None, None)
    assert pace.remaining(steps=10, epoch_ends=1, now=0) is None


def test_the_end_counts_what_lies_between_epochs() -> None:
    pace = Pace()
    now = run(pace, epochs=3, steps=10, seconds=2, between=7)
    assert pace.steps_per_second == pytest.approx(0.5)
    assert pace.seconds_between_epochs == pytest.approx(7)
    assert pace.remaining(steps=70, epoch_ends=8, now=now) == pytest.approx(70 * 2 + 8 * 7)


def test_the_first_samples_are_the_first_guess() -> None:
    pace = Pace(before_first=20)
    pace.stepped(epoch=1, loss=1, seconds=1, now=1)
    assert pace.remaining(steps=9, epoch_ends=2, now=1) == pytest.approx(9 + 40)


def test_time_that_passes_without_steps_is_taken_off_but_never_below_zero() -> None:
    pace = Pace()
    now = run(pace, epochs=2, steps=5, seconds=1, between=10)
    assert pace.remaining(steps=0, epoch_ends=1, now=now + 4) == pytest.approx(6)
    assert pace.remaining(steps=0, epoch_ends=1, now=now + 400) == 0


def test_speed_and_loss_follow_the_last_steps_only() -> None:
    pace = Pace()
    for step in range(WINDOW):
        pace.stepped(epoch=1, loss=9, seconds=9, now=9.0 * step)
    for step in range(WINDOW):
        pace.stepped(epoch=1, loss=1, seconds=0.5, now=1000 + 0.5 * step)
    assert pace.loss == pytest.approx(1)
    assert pace.steps_per_second == pytest.approx(2)


def test_numbers_that_are_none_leave_no_trace() -> None:
    pace = Pace()
    pace.stepped(epoch=1, loss=0.25, seconds=1, now=1)
    for bad in (math.nan, math.inf, -math.inf):
        pace.stepped(epoch=1, loss=bad, seconds=bad, now=2)
    assert pace.loss == 0.25
    assert pace.steps_per_second == 1
