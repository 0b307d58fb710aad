"""The operator's own HTTP server: liveness, readiness and metrics on one port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def serve(
    address: tuple[str, int], *, registry: CollectorRegistry, unready: Callable[[], str | None]
) -> AsyncIterator[int]:
    """Serve as long as the block runs, and give it the port.

    Args:
        address: Host and port; port 0 takes a free one.
        registry: What /metrics shows.
        unready: Returns why the operator is not ready, or None.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # that the loop answers is all that a restart could mend

    async def readyz(_: web.Request) -> web.Response:
        reason = unready()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": METRICS_TYPE})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, *address)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
