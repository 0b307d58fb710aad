"""kopf as an informer: its watches feed the cache and the queue, and nothing else of it is used.

No change handlers, timers, daemons or indexes: those write annotations and finalizers to users' objects, and an index
makes start-up quadratic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from darkroom_api.names import LABEL_RUN
from darkroom_operator.cache import Cache
from darkroom_operator.config import Config
from darkroom_operator.kube import PAGE
from darkroom_operator.objects import CHILDREN, CONFIG_MAPS, JOBS, PODS, TRAININGS, Key, Resource


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings: watch what is ours, write nothing."""
    chosen = kopf.OperatorSettings()
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.posting.enabled = False
    chosen.watching.chunk_size = PAGE
    chosen.watching.connect_timeout = 10
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 5
    chosen.networking.error_backoffs = [1, 2, 3, 5, 8]
    chosen.networking.enforce_retry_after = True
    chosen.queueing.idle_timeout = 1.0
    for resource in CHILDREN:
        chosen.watching.label_selectors[resource.group, resource.version, resource.plural] = LABEL_RUN
    return chosen


def registry(cache: Cache, enqueue: Callable[[Key], None]) -> kopf.OperatorRegistry:
    """Return the handlers."""
    handlers = kopf.OperatorRegistry()

    def feed(resource: Resource, event: kopf.RawEvent) -> None:
        take = cache.remove if event["type"] == "DELETED" else cache.put
        for key in take(resource, dict(event["object"])):
            enqueue(key)

    @kopf.on.login(registry=handlers)
    def login(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    @kopf.on.event(TRAININGS.group, TRAININGS.version, TRAININGS.plural, registry=handlers)
    async def training(event: kopf.RawEvent, **_: Any) -> None:
        feed(TRAININGS, event)

    @kopf.on.event(JOBS.group, JOBS.version, JOBS.plural, registry=handlers)
    async def job(event: kopf.RawEvent, **_: Any) -> None:
        feed(JOBS, event)

    @kopf.on.event(PODS.group, PODS.version, PODS.plural, registry=handlers)
    async def pod(event: kopf.RawEvent, **_: Any) -> None:
        feed(PODS, event)

    @kopf.on.event(CONFIG_MAPS.group, CONFIG_MAPS.version, CONFIG_MAPS.plural, registry=handlers)
    async def config_map(event: kopf.RawEvent, **_: Any) -> None:
        feed(CONFIG_MAPS, event)

    return handlers


async def watch(config: Config, cache: Cache, enqueue: Callable[[Key], None]) -> None:
    """Watch until a signal asks to stop; raise when a watch is lost for good."""
    await kopf.operator(
        registry=registry(cache, enqueue),
        settings=settings(),
        standalone=True,
        clusterwide=not config.namespaces,
        namespaces=config.namespaces,
    )
