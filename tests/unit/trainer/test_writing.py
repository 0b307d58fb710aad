"""Jobs beside the loop: in order, one at a time, and none fails unheard."""

from __future__ import annotations

import threading

import pytest

from darkroom_trainer.writing import Writer


def test_jobs_run_beside_the_caller_and_in_order() -> None:
    writer, may_end, done = Writer(), threading.Event(), list[str]()

    def slow() -> None:
        assert may_end.wait(20)
        done.append("slow")

    writer.hand_over(slow)
    assert done == []
    may_end.set()
    writer.hand_over(lambda: done.append("quick"))
    assert done[0] == "slow"
    writer.wait()
    assert done == ["slow", "quick"]


@pytest.mark.parametrize("ask", [lambda writer: writer.wait(), lambda writer: writer.hand_over(lambda: None)])
def test_a_failure_is_raised_at_the_next_occasion(ask: object) -> None:
    def fail() -> None:
        raise OSError("disk full")

    writer = Writer()
    writer.hand_over(fail)
    assert callable(ask)
    with pytest.raises(OSError, match="disk full"):
        ask(writer)
    writer.wait()
