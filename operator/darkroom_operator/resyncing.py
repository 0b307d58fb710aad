"""Full lists: once before anything is decided, then every few minutes, since a watch can miss a deletion for ever."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from darkroom_api.names import LABEL_RUN
from darkroom_operator.cache import Cache
from darkroom_operator.client import UNREACHABLE, ApiError, KubeClient
from darkroom_operator.objects import CONFIG_MAPS, JOBS, PARENTS, PODS, WATCHED, Key, Resource

logger = logging.getLogger(__name__)
START_PATIENCE: Final = 60.0
"""Seconds that the API server may be away at the start before the process gives up and is restarted."""
_PASSING: Final = frozenset({UNREACHABLE, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GONE, HTTPStatus.TOO_MANY_REQUESTS})
"""A server that is starting or busy, and a list that took so long that its next page is gone."""
RETRY_PAUSE: Final = 2.0
_ORDER: Final = (*PARENTS, CONFIG_MAPS, JOBS, PODS)
"""Pods last: a pod that outlives its deleted Job is then certainly seen."""


class CannotStartError(Exception):
    """The cluster lacks something without which the operator can do nothing; the message says what to do."""


class MissingError(ApiError):
    """The cluster has no such type of objects."""

    def __init__(self, resource: Resource, error: ApiError) -> None:
        super().__init__(error.status, error.reason, error.message)
        self.resource = resource


class Resync:
    """Keeps the cache true to full lists."""

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        *,
        namespaces: Sequence[str],
        interval: float,
        enqueue: Callable[[Key], None],
    ) -> None:
        self._client = client
        self._cache = cache
        self._scopes: Sequence[str | None] = namespaces or (None,)
        self._interval = interval
        self._enqueue = enqueue
        self._last: float | None = None
        self._unwatched = {(resource, scope) for resource in WATCHED for scope in self._scopes}
        self._requested: set[tuple[Resource, str | None]] = set()
        self._wake = asyncio.Event()

    def unready(self) -> str | None:
        """Tell why the cache cannot be relied on, or None."""
        if self._last is None:
            return "the cache is not synced yet"
        if self._unwatched:
            kinds = {resource.plural for resource, _ in self._unwatched}
            return f"no watch has begun yet for {', '.join(sorted(kinds))}"
        return f"the last full list is {self.age():.0f} s old" if self.age() > 2.5 * self._interval else None

    def age(self) -> float:
        """Return the age of the last full list in seconds."""
        return 0.0 if self._last is None else time.monotonic() - self._last

    async def start(self) -> None:
        """List everything for the first time.

        Raises:
            CannotStartError: The CRD or a permission is missing, or the API server is away for too long.
        """
        deadline = time.monotonic() + START_PATIENCE
        pause = 0.5
        while True:
            try:
                await self.once()
            except ApiError as error:
                problem = _explain(error)
                if problem or time.monotonic() > deadline:
                    raise CannotStartError(problem or f"the API server does not answer: {error}") from error
                logger.warning("waiting for the API server: %s", error)
                await asyncio.sleep(pause)
                pause = min(8.0, pause * 2)
            else:
                break
        for key, _ in self._cache.parents():
            self._enqueue(key)

    def watched(self, resource: Resource, scope: str | None) -> None:
        """Take note that a watch has begun, and have its type listed: a deletion just before is in neither else."""
        self._unwatched.discard((resource, scope))
        self.request(resource, scope)

    def request(self, resource: Resource, scope: str | None) -> None:
        """Have a type listed soon."""
        self._requested.add((resource, scope))
        self._wake.set()

    async def run(self) -> None:
        """List for ever: what is requested at once, everything now and then, with jitter so that operators disperse."""
        due = self._next_time()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, due - time.monotonic()))
            try:
                if time.monotonic() >= due:
                    await self.once()
                    due = self._next_time()
                await self._list_requested()
            except ApiError as error:
                logger.warning("a full list failed and is tried again: %s", error)
                await asyncio.sleep(RETRY_PAUSE)

    def _next_time(self) -> float:
        return time.monotonic() + self._interval * random.uniform(0.9, 1.1)

    async def _list_requested(self) -> None:
        self._wake.clear()
        while self._requested:
            resource, scope = self._requested.pop()
            try:
                await self._list(resource, scope)
            except ApiError:
                self.request(resource, scope)
                raise

    async def once(self) -> None:
        """Replace what is cached by full lists."""
        for resource in _ORDER:
            for scope in self._scopes:
                await self._list(resource, scope)
        self._last = time.monotonic()

    async def _list(self, resource: Resource, scope: str | None) -> None:
        selector = "" if resource in PARENTS else LABEL_RUN
        try:
            listing = await self._client.list_all(resource, scope, selector=selector)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise MissingError(resource, error) from error
            raise
        for key in self._cache.replace(resource, listing.items, version=listing.version, namespace=scope):
            self._enqueue(key)


def _explain(error: ApiError) -> str | None:
    """Return what to do about an error that waiting does not mend."""
    if isinstance(error, MissingError):
        return (
            f"the cluster has no resource {error.resource.plural}.{error.resource.api_version}; install the CRDs: "
            "kubectl apply -f crds/, or helm upgrade --install darkroom charts/darkroom"
        )
    if error.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return f"the operator's account lacks a permission: {error.message}; grant the rules of charts/darkroom"
    passes = error.status in _PASSING or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return None if passes else str(error)
