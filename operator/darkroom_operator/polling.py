"""Asks running pods how far they are, never faster than a budget for all of them, and believes little of it.

A pod runs a user's data through a large program; what it answers is bounded in size and time, parsed by a schema, held
to its own run, and no redirect is followed: the operator's network is not the pod's to explore.
"""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import aiohttp
from pydantic import ValidationError

from darkroom_api.names import PROGRESS_PORT
from darkroom_api.progress import MAXIMUM_PROGRESS_BYTES, Progress
from darkroom_operator.cache import Cache
from darkroom_operator.decide.sanity import is_sane
from darkroom_operator.decide.snapshot import PodAddress
from darkroom_operator.metrics import Metrics
from darkroom_operator.objects import Key, RunKey

logger = logging.getLogger(__name__)
TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)
CONCURRENCY: Final = 32


class Poller:
    """Polls each aimed-at pod once per interval, or less often when the budget is short."""

    def __init__(
        self,
        cache: Cache,
        *,
        interval: float,
        rate: float,
        metrics: Metrics,
        changed: Callable[[Key], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._cache = cache
        self._interval = interval
        self._pause = 1.0 / rate
        self._metrics = metrics
        self._changed = changed
        self._clock = clock
        self._targets: dict[Key, PodAddress] = {}
        self._heard: dict[Key, float] = {}
        self._saved: dict[Key, tuple[int, float]] = {}
        """Number of checkpoints that a pod reported, and when that number last rose."""
        self._due: list[tuple[float, Key]] = []
        self._scheduled: set[Key] = set()
        self._wake = asyncio.Event()

    def aim(self, key: Key, target: PodAddress | None) -> None:
        """Poll a pod for a training from now on, or none."""
        if target is None:
            self.forget(key)
            return
        if self._targets.get(key) == target:
            return
        self._targets[key] = target
        self._heard[key] = asyncio.get_running_loop().time()
        self._saved[key] = (0, self._heard[key])
        self._schedule(key, 0.0)

    def forget(self, key: Key) -> None:
        """Poll nothing for a training any more."""
        self._targets.pop(key, None)
        self._heard.pop(key, None)
        self._saved.pop(key, None)

    def oldest_report(self) -> float:
        """Return for how many seconds the most silent of the running pods has said nothing."""
        now = asyncio.get_running_loop().time()
        return max((now - heard for heard in self._heard.values()), default=0.0)

    def oldest_checkpoint(self) -> float:
        """Return for how many seconds the slowest of the running pods has saved no checkpoint."""
        now = asyncio.get_running_loop().time()
        return max((now - saved for _, saved in self._saved.values()), default=0.0)

    async def run(self) -> None:
        """Poll for ever."""
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(CONCURRENCY)
        # Peers are pods: no proxy of the environment, no cookies, no redirects.
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
            asyncio.TaskGroup() as tasks,
        ):
            while True:
                key = await self._next(loop)
                if key not in self._targets:
                    continue
                await slots.acquire()
                tasks.create_task(self._poll(session, key, slots=slots))
                await asyncio.sleep(self._pause)

    async def _next(self, loop: asyncio.AbstractEventLoop) -> Key:
        """Wait for the key that is due first."""
        while True:
            delay = self._due[0][0] - loop.time() if self._due else None
            if delay is not None and delay <= 0:
                key = heapq.heappop(self._due)[1]
                self._scheduled.discard(key)
                return key
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), delay)
            except TimeoutError:
                continue

    def _schedule(self, key: Key, delay: float) -> None:
        if key in self._scheduled:
            return
        self._scheduled.add(key)
        heapq.heappush(self._due, (asyncio.get_running_loop().time() + delay, key))
        self._wake.set()

    async def _poll(self, session: aiohttp.ClientSession, key: Key, *, slots: asyncio.Semaphore) -> None:
        target = self._targets.get(key)
        try:
            if target is None:
                return
            progress, result = await ask(session, target)
            self._metrics.polls.labels(result).inc()
            if progress is None:
                logger.debug("%s: polling pod %s: %s", key, target.pod, result)
                return
            self._note(key, checkpoints=len(progress.checkpoints))
            run = RunKey(key.namespace, target.run)
            received = self._clock().replace(microsecond=0)
            if self._cache.observe(run, target.pod, progress=progress, received=received):
                self._changed(key)
        finally:
            slots.release()
            if key in self._targets:
                self._schedule(key, self._interval)

    def _note(self, key: Key, *, checkpoints: int) -> None:
        if key not in self._targets:
            return
        now = self._heard[key] = asyncio.get_running_loop().time()
        if checkpoints > self._saved[key][0]:
            self._saved[key] = (checkpoints, now)


async def ask(session: aiohttp.ClientSession, target: PodAddress) -> tuple[Progress | None, str]:
    """Ask a pod for its progress; return it, or None, and in one word how that went."""
    address = ipaddress.ip_address(target.ip)
    host = f"[{address}]" if address.version == 6 else str(address)
    try:
        url = f"http://{host}:{PROGRESS_PORT}/progress"
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None, "status"
            data = await response.content.read(MAXIMUM_PROGRESS_BYTES + 1)
            while len(data) <= MAXIMUM_PROGRESS_BYTES and (more := await response.content.read(65536)):
                data += more
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None, "unreachable"
    if len(data) > MAXIMUM_PROGRESS_BYTES:
        return None, "oversized"
    return parse(data, run=target.run)


def parse(data: bytes, *, run: str) -> tuple[Progress | None, str]:
    """Parse a pod's answer."""
    try:
        progress = Progress.model_validate_json(data)
    except ValidationError:
        return None, "invalid"
    if progress.run != run:
        return None, "foreign"
    if not is_sane(progress):
        return None, "insane"
    if progress.updated.tzinfo is None:
        progress = progress.model_copy(update={"updated": progress.updated.replace(tzinfo=UTC)})
    return progress, "ok"
