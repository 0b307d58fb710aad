from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError, StopRequested
from darkroom_trainer.patience import Patience


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def refused() -> EndpointConnectionError:
    return EndpointConnectionError(endpoint_url="http://s3", error="Connection refused")


def failing(times: int) -> Callable[[], str]:
    left = [times]

    def operation() -> str:
        if left[0]:
            left[0] -= 1
            raise refused()
        return "done"

    return operation


def test_an_outage_is_waited_out_and_told() -> None:
    clock, told = Clock(), list[str]()
    patience = Patience(
        clock=clock, sleep=clock.sleep, on_away=told.append, on_back=lambda: told.append("back"), uniform=max
    )
    assert patience.run(failing(4), what="reading s3://a/b") == "done"
    assert clock.now == pytest.approx(0.5 + 1 + 2 + 4)
    assert len(told) == 5
    assert all("reading s3://a/b: connection refused" in text for text in told[:4])
    assert told[4] == "back"


def test_waiting_ends_after_the_whole_time_and_no_sooner() -> None:
    clock = Clock()
    patience = Patience(total_seconds=100, clock=clock, sleep=clock.sleep, uniform=max)
    with pytest.raises(RunError, match=r"reading s3://a/b \(tried \d+ times in 100 s\): connection refused") as caught:
        patience.run(failing(1_000_000), what="reading s3://a/b")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    assert clock.now == pytest.approx(100)


def test_delays_double_up_to_the_longest_and_are_jittered() -> None:
    low, high = Patience(uniform=min), Patience(uniform=max)
    assert [high.delay(attempt) for attempt in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [low.delay(attempt) for attempt in range(1, 9)] == [0.25, 0.5, 1, 2, 4, 8, 15, 15]
    assert high.delay(10_000) == 30


def test_a_refusal_is_not_repeated() -> None:
    clock, calls = Clock(), 0

    def operation() -> None:
        nonlocal calls
        calls += 1
        raise NoCredentialsError

    with pytest.raises(RunError) as caught:
        Patience(clock=clock, sleep=clock.sleep).run(operation, what="reading s3://a/b")
    assert caught.value.reason is FailureReason.ACCESS_DENIED
    assert (calls, clock.naps) == (1, [])


def test_a_bug_is_not_taken_for_an_outage() -> None:
    with pytest.raises(ZeroDivisionError):
        Patience().run(lambda: 1 // 0, what="dividing")


def test_a_request_to_stop_ends_a_long_wait_within_a_nap() -> None:
    clock = Clock()

    def check() -> None:
        if clock.now > 20:
            raise StopRequested

    patience = Patience(clock=clock, sleep=clock.sleep, check=check, uniform=max)
    with pytest.raises(StopRequested):
        patience.run(failing(1_000), what="reading s3://a/b")
    assert clock.now <= 20.5


def test_patience_begins_when_the_store_goes_away_not_when_the_work_began() -> None:
    clock, took = Clock(), iter([960.0, 5.0, 5.0])

    def download() -> str:
        clock.now += next(took)
        if clock.now < 970:
            raise refused()
        return "done"

    assert Patience(clock=clock, sleep=clock.sleep, uniform=max).run(download, what="downloading") == "done"


def breaking(
    clock: Clock, *, moving: float, silent: float, times: int
) -> tuple[Callable[[], str], Callable[[], float]]:
    """Return a download that breaks after some seconds of bytes and some of silence, and when bytes last moved."""
    heard, left = [-math.inf], [times]

    def download() -> str:
        if not left[0]:
            return "done"
        left[0] -= 1
        clock.now += moving
        if moving:
            heard[0] = clock.now
        clock.now += silent
        raise refused()

    return download, lambda: heard[0]


def test_an_attempt_in_which_much_arrived_renews_the_patience() -> None:
    clock = Clock()
    download, heard = breaking(clock, moving=500, silent=0, times=5)
    patience = Patience(clock=clock, sleep=clock.sleep, uniform=max)
    assert patience.run(download, what="downloading", heard=heard) == "done"
    assert clock.now == pytest.approx(5 * 500 + 5 * 0.5)


@pytest.mark.parametrize("moving", [0, 5])
def test_a_store_that_is_silent_until_the_timeouts_wears_the_patience_out(moving: float) -> None:
    clock = Clock()
    download, heard = breaking(clock, moving=moving, silent=120, times=1_000)
    with pytest.raises(RunError, match="connection refused"):
        Patience(clock=clock, sleep=clock.sleep, uniform=max).run(download, what="downloading", heard=heard)
    assert 900 <= clock.now < 1_300
