"""The work queue: nothing is lost, nothing runs twice at a time."""

from __future__ import annotations

import asyncio
import random

import pytest

from darkroom_operator.queue import WorkQueue


async def test_a_key_is_worked_on_by_one_worker_at_a_time_and_after_its_last_addition() -> None:
    queue: WorkQueue[int] = WorkQueue(base=0.001)
    dice = random.Random(1)
    versions = dict.fromkeys(range(20), 0)
    seen: dict[int, int] = {}
    busy: set[int] = set()

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in busy
            busy.add(key)
            seen[key] = versions[key]
            await asyncio.sleep(dice.random() * 0.001)
            busy.remove(key)
            queue.done(key)

    async with asyncio.timeout(30):
        workers = [asyncio.create_task(work()) for _ in range(8)]
        for _ in range(3000):
            key = dice.randrange(20)
            versions[key] += 1
            queue.add(key)
            if dice.random() < 0.05:
                await asyncio.sleep(0)
        while not queue.is_idle:  # noqa: ASYNC110 - the queue has no need of such an event
            await asyncio.sleep(0.001)
    for worker in workers:
        assert not worker.done()
        worker.cancel()
    assert seen == versions


async def test_of_several_delays_the_soonest_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 30)
    async with asyncio.timeout(10):
        assert await queue.get() == "a"
    assert len(queue) == 0


async def test_an_addition_makes_a_delay_superfluous() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 0.01)
    queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    await asyncio.sleep(0.05)  # longer than the delay: nothing may come of it any more
    assert queue.is_idle


async def test_pauses_double_up_to_a_maximum_and_begin_anew_after_success() -> None:
    queue: WorkQueue[str] = WorkQueue(base=1, maximum=8, jitter=lambda: 1.0)
    assert [queue.retry("a") for _ in range(6)] == [1, 2, 4, 8, 8, 8]
    queue.forget("a")
    assert queue.retry("a") == 1


async def test_a_key_added_while_it_is_worked_on_runs_once_more() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert queue.is_idle
