"""kopf as an informer: its watches feed the cache and the queue, and nothing else of it is used.

No change handlers, timers, daemons or indexes: those write annotations and finalizers to users' objects, and an index
makes start-up quadratic.

kopf lists, then watches, and never compares: what is deleted between somebody else's list and its own, or while a
watch is lost, stays in the cache for ever. So each time kopf has listed and begins to watch, a full list of the
operator's own follows: from then on every deletion is either in that list or in that watch.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import kopf
from kopf._core.engines.peering import Identity

from darkroom_api.names import LABEL_RUN
from darkroom_operator.cache import Cache
from darkroom_operator.config import Config
from darkroom_operator.kube import PAGE
from darkroom_operator.objects import CHILDREN, WATCHED, Key, Resource


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


class _Tracer:
    """Tells when kopf begins to watch what it has just listed, from the requests that it makes."""

    def __init__(self, began: Callable[[Resource, str | None], None]) -> None:
        self._began = began
        self._listed: set[str] = set()

    def trace(self) -> aiohttp.TraceConfig:
        """Return the hook for an HTTP session."""
        config = aiohttp.TraceConfig()
        config.on_request_start.append(self._start)
        return config

    async def _start(self, _session: object, _context: object, request: aiohttp.TraceRequestStartParams) -> None:
        resource = next((kind for kind in WATCHED if request.url.parts[-1] == kind.plural), None)
        if request.method != "GET" or resource is None:
            return
        if request.url.query.get("watch") != "true":
            self._listed.add(request.url.path)
        elif request.url.path in self._listed:
            self._listed.discard(request.url.path)
            parts = request.url.parts
            self._began(resource, parts[parts.index("namespaces") + 1] if "namespaces" in parts else None)


def _without_dns(info: kopf.ConnectionInfo, environ: Mapping[str, str]) -> kopf.ConnectionInfo:
    """Reach the API server of the own cluster by address: it must be found while the cluster's DNS is away."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host is None or urlsplit(info.server).hostname != "kubernetes.default.svc":
        return info
    return replace(info, server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")


def _session(info: kopf.ConnectionInfo, tracer: _Tracer) -> kopf.AiohttpSession:
    """Return the session that kopf would make itself, with a hook."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        trace_configs=[tracer.trace()],
    )
    return kopf.AiohttpSession(
        server=info.server,
        aiohttp_session=session,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
    )


def _handler(resource: Resource, feed: Callable[[Resource, kopf.RawEvent], None]) -> Callable[..., Awaitable[None]]:
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        feed(resource, event)

    return handle


def registry(
    cache: Cache,
    enqueue: Callable[[Key], None],
    *,
    began: Callable[[Resource, str | None], None],
    ending: Callable[[], None],
) -> kopf.OperatorRegistry:
    """Return the handlers."""
    handlers = kopf.OperatorRegistry()
    tracer = _Tracer(began)
    refused: list[kopf.ConnectionInfo] = []

    def feed(resource: Resource, event: kopf.RawEvent) -> None:
        take = cache.remove if event["type"] == "DELETED" else cache.put
        for key in take(resource, dict(event["object"])):
            enqueue(key)

    @kopf.on.login(registry=handlers)
    async def login(**given: Any) -> kopf.AiohttpSession | None:
        info = kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)
        # Called again, what was given before has been refused; a token that the kubelet renewed is another.
        if info is None or info in refused:
            return None
        refused[:] = [info]
        return _session(_without_dns(info, os.environ), tracer)

    @kopf.on.cleanup(registry=handlers)
    async def clean_up(**_: Any) -> None:
        ending()  # kopf waits five seconds for whatever runs on after this

    for resource in WATCHED:
        subscribe = kopf.on.event(
            resource.group, resource.version, resource.plural, id=resource.plural, registry=handlers
        )
        subscribe(_handler(resource, feed))
    return handlers


async def watch(
    config: Config,
    cache: Cache,
    enqueue: Callable[[Key], None],
    *,
    began: Callable[[Resource, str | None], None],
    ending: Callable[[], None],
) -> None:
    """Watch until a signal asks to stop; raise when a watch is lost for good.

    Args:
        config: Which namespaces to watch.
        cache: What is fed.
        enqueue: Called with each key to look at.
        began: Called with a type and a namespace, or None for all, when a watch begins after a list.
        ending: Called when the watches are about to end, for whatever reason.
    """
    await kopf.operator(
        registry=registry(cache, enqueue, began=began, ending=ending),
        settings=settings(),
        identity=Identity("darkroom-operator"),  # else kopf looks up the user's name, which a pod's uid need not have
        standalone=True,
        clusterwide=not config.namespaces,
        namespaces=config.namespaces,
    )
