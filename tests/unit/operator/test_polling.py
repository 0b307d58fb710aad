"""What the operator believes of what a pod answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import aiohttp
import pytest
from aiohttp import web

from darkroom_api.names import PROGRESS_PORT
from darkroom_operator.decide.snapshot import PodAddress
from darkroom_operator.polling import ask, parse
from tests.unit.operator.world import NOW, RUN, observation


def answer(**values: object) -> bytes:
    return observation(**values).progress.model_dump_json(by_alias=True).encode()  # type: ignore[arg-type]


def test_a_good_answer_is_taken() -> None:
    progress, how = parse(answer(step=3), run=RUN)
    assert how == "ok"
    assert progress
    assert progress.step == 3


def test_a_time_without_zone_is_taken_for_utc() -> None:
    progress, _ = parse(answer(updated=datetime(2026, 11, 22, 12)), run=RUN)
    assert progress
    assert progress.updated == NOW


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (answer(run="0000000000"), "foreign"),
        (answer(step=2**60), "insane"),
        (b"", "invalid"),
        (b"[]", "invalid"),
        (b'{"run": "x"}', "invalid"),
        (answer(step=3).replace(b'"step":3', b'"step":-3'), "invalid"),
        (answer(loss=0.5).replace(b'"loss":0.5', b'"loss":NaN'), "invalid"),
        (b"\xff\xfe", "invalid"),
    ],
)
def test_a_bad_answer_is_not(data: bytes, how: str) -> None:
    assert parse(data, run=RUN) == (None, how)


async def redirect(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def elsewhere(_: web.Request) -> web.StreamResponse:
    return web.Response(body=answer(step=3))


async def oversized(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(20):
        await response.write(b" " * 20_000)  # in chunks: no length is told beforehand
    return response


async def dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:  # no pause between two bytes is long, and it never ends
        await response.write(b" ")
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("address", "handler", "how"),
    [
        ("127.7.0.1", redirect, "status"),
        ("127.7.0.2", oversized, "oversized"),
        ("127.7.0.3", dripping, "unreachable"),
        ("127.7.0.4", elsewhere, "ok"),
    ],
)
async def test_a_pod_cannot_lead_on_flood_or_hold_up(
    address: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], how: str
) -> None:
    application = web.Application()
    application.router.add_get("/progress", handler)
    application.router.add_get("/elsewhere", elsewhere)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, PROGRESS_PORT).start()
    try:
        timeout = aiohttp.ClientTimeout(total=1.0)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            progress, told = await ask(session, PodAddress("pod-a", address, RUN))
    finally:
        await runner.cleanup()
    assert told == how
    assert (progress is not None) == (how == "ok")
