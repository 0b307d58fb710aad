"""Puts the parts together and runs them until a signal asks to stop or one of them fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from darkroom_operator.cache import Cache
from darkroom_operator.client import KubeClient
from darkroom_operator.config import Config
from darkroom_operator.execute import Executor
from darkroom_operator.health import serve
from darkroom_operator.kube import connect
from darkroom_operator.metrics import LiveGauges, Metrics
from darkroom_operator.objects import WATCHED, Key
from darkroom_operator.polling import Poller
from darkroom_operator.queue import WorkQueue
from darkroom_operator.reconciling import Reconciler
from darkroom_operator.resyncing import Resync
from darkroom_operator.watching import watch

logger = logging.getLogger(__name__)


async def run(config: Config) -> None:
    """Run the operator."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect())
        await Operator(client, config).run()


class Operator:
    """All parts of one operator."""

    def __init__(self, client: KubeClient, config: Config) -> None:
        self._config = config
        self.cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.metrics = Metrics()
        self.resync = Resync(
            client, self.cache, namespaces=config.namespaces, interval=config.resync, enqueue=self.queue.add
        )
        self._poller = Poller(
            self.cache,
            interval=config.poll_interval,
            rate=config.poll_rate,
            metrics=self.metrics,
            changed=self.queue.add,
            clock=_now,
        )
        self._reconciler = Reconciler(
            self.cache,
            self.queue,
            Executor(client, self.cache, self.metrics),
            poller=self._poller,
            config=config,
            metrics=self.metrics,
            clock=_now,
        )
        self._measure()

    async def run(self) -> None:
        """Run until a signal asks to stop."""
        registry = self.metrics.registry
        async with serve(self._config.listen, registry=registry, unready=self.resync.unready) as port:
            logger.info("serving /healthz, /readyz and /metrics on port %d", port)
            started = time.perf_counter()
            await self.resync.start()
            known = ", ".join(f"{self.cache.count(resource)} {resource.plural}" for resource in WATCHED)
            logger.info("synced in %.2f s: %s", time.perf_counter() - started, known)
            await self._work()

    async def _work(self) -> None:
        endless = [self._reconciler.work() for _ in range(self._config.workers)]
        endless += [self.resync.run(), self._poller.run()]
        tasks = {asyncio.create_task(coroutine) for coroutine in endless}

        def stop() -> None:
            for task in tasks:
                task.cancel()

        watching = asyncio.create_task(
            watch(self._config, self.cache, self.queue.add, began=self.resync.watched, ending=stop)
        )
        try:
            done, _ = await asyncio.wait({*tasks, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()  # raises what ended it; none ends by itself
            await watching  # asked to stop, kopf ends its watches after our tasks
        finally:
            stop()
            watching.cancel()
            await asyncio.gather(*tasks, watching, return_exceptions=True)

    def _measure(self) -> None:
        def phases() -> dict[tuple[str, str], int]:
            return Counter(
                (key.kind, (item.get("status") or {}).get("phase") or "None") for key, item in self.cache.parents()
            )

        gauges = LiveGauges(queue_depth=lambda: float(len(self.queue)), phases=phases)
        ages = {
            "progress": ("Silence of the most silent running pod.", self._poller.oldest_report),
            "checkpoint": (
                "Time since the last checkpoint of the slowest running pod.",
                self._poller.oldest_checkpoint,
            ),
            "resync": ("Age of the last full list.", self.resync.age),
        }
        for name, (help_text, read) in ages.items():
            gauges.add_age(f"darkroom_{name}_age_seconds", help_text, read)
        self.metrics.collect_from(gauges)


def _now() -> datetime:
    return datetime.now(UTC)
