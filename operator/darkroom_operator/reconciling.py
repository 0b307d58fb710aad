"""Workers: take a key, look, decide, write; on any failure come back later.

Nothing is remembered between two turns that could not be forgotten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from darkroom_operator.cache import Cache
from darkroom_operator.client import ApiError
from darkroom_operator.config import Config
from darkroom_operator.decide.snapshot import CreateJob, Plan, Snapshot, Trouble
from darkroom_operator.decide.training import decide
from darkroom_operator.execute import Executor, RefusedError
from darkroom_operator.metrics import Metrics
from darkroom_operator.objects import Key
from darkroom_operator.polling import Poller
from darkroom_operator.queue import WorkQueue

logger = logging.getLogger(__name__)


class Reconciler:
    """Brings one training at a time to where it should be."""

    def __init__(
        self,
        cache: Cache,
        queue: WorkQueue[Key],
        executor: Executor,
        *,
        poller: Poller,
        config: Config,
        metrics: Metrics,
        clock: Callable[[], datetime],
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._executor = executor
        self._poller = poller
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._troubles: dict[Key, tuple[str, Trouble]] = {}
        """What the API server last refused, by training, with the uid it is about."""

    async def work(self) -> None:
        """Work on keys for ever."""
        while True:
            key = await self._queue.get()
            started = time.perf_counter()
            try:
                result = await self._turn(key)
            finally:
                self._queue.done(key)
            self._metrics.reconciles.labels(result).inc()
            self._metrics.reconcile_seconds.observe(time.perf_counter() - started)

    async def _turn(self, key: Key) -> str:
        try:
            is_done = await self.reconcile(key)
        except ApiError as error:
            logger.warning("%s: %s; trying again in %.1f s", key, error, self._queue.retry(key))
            return "error"
        except Exception:
            # One training that brings out a bug must not stop all others.
            logger.exception("%s: cannot be reconciled; trying again in %.1f s", key, self._queue.retry(key))
            return "bug"
        if is_done:
            self._queue.forget(key)
            return "done"
        self._queue.retry(key)
        return "again"

    async def reconcile(self, key: Key) -> bool:
        """Bring a training to where it should be; False if it is not there and should be tried again soon."""
        snapshot = self._look(key)
        if snapshot is None:
            self._troubles.pop(key, None)
            self._poller.forget(key)
            return True
        plan = decide(snapshot, self._config, self._clock())
        if snapshot.trouble and not snapshot.trouble.is_final and not plan.actions:
            del self._troubles[key]  # what was refused is not wanted any more
            snapshot = replace(snapshot, trouble=None)
            plan = decide(snapshot, self._config, self._clock())
        if _makes_again(snapshot, plan):
            await self._executor.look_for_pods(snapshot)
            snapshot = self._look(key) or snapshot
            plan = decide(snapshot, self._config, self._clock())
        acted = plan.actions
        if acted:
            await self._act(snapshot, plan)
            snapshot = self._look(key)
            if snapshot is None:
                return True
            plan = decide(snapshot, self._config, self._clock())  # the status tells what is true now
        self._poller.aim(key, plan.poll)
        if not any(action in acted for action in plan.actions):
            return await self._publish(snapshot, plan)
        # What is still wanted after it was done had no effect; done again at once it would have none either.
        await self._publish(snapshot, replace(plan, actions=()))
        return False

    def _look(self, key: Key) -> Snapshot | None:
        snapshot = self._cache.snapshot(key)
        if snapshot is None:
            return None
        uid, trouble = self._troubles.get(key, ("", None))
        return replace(snapshot, trouble=trouble) if uid == snapshot.uid else snapshot

    async def _act(self, snapshot: Snapshot, plan: Plan) -> None:
        try:
            for action in plan.actions:
                await self._executor.act(snapshot.key, action)
        except RefusedError as refused:
            logger.warning("%s: %s", snapshot.key, refused)
            self._troubles[snapshot.key] = (snapshot.uid, refused.trouble)
        else:
            self._troubles.pop(snapshot.key, None)

    async def _publish(self, snapshot: Snapshot, plan: Plan) -> bool:
        for note in plan.events:
            await self._executor.post(snapshot, note, now=self._clock())
        is_written = not plan.status_patch or await self._executor.write_status(snapshot, plan.status_patch)
        if not is_written:
            return False
        if plan.requeue_after is not None:
            self._queue.add_after(snapshot.key, plan.requeue_after)
        if snapshot.trouble is not None:
            return snapshot.trouble.is_final
        if plan.actions or plan.status_patch:
            self._queue.add(snapshot.key)  # what was written may be the ground for more
        return True


def _makes_again(snapshot: Snapshot, plan: Plan) -> bool:
    """Tell whether a Job is to be made that was there before, perhaps with a pod that is still there."""
    had_job = bool((snapshot.training.get("status") or {}).get("jobName"))
    return had_job and any(isinstance(action, CreateJob) for action in plan.actions)
