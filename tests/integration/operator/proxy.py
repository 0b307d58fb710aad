"""A proxy before the API server that counts writes, and at the n-th one cuts every connection, once.

The operator speaks plain HTTP to it; it speaks TLS to the server with an administrator's certificate.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

import aiohttp
import yaml
from aiohttp import web

from dev.cluster.certificates import pair
from dev.cluster.components import Site

_WRITES = frozenset({"POST", "PATCH", "PUT", "DELETE"})
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "content-encoding", "keep-alive"})


class Write(NamedTuple):
    method: str
    path: str
    status: int
    """What the server answered; 0 if it was never asked."""


@dataclass(frozen=True)
class Cut:
    """Where to cut: before the write reaches the server, or after, so that only the answer is lost."""

    number: int
    side: Literal["before", "after"]


class FaultProxy:
    """Runs in a thread of its own for the time of a `with` block."""

    def __init__(
        self,
        site: Site,
        directory: Path,
        *,
        cut: Cut | None = None,
        at_cut: Callable[[], None] = lambda: None,
        rewrite: Callable[[web.Request], str] = lambda request: request.raw_path,
    ) -> None:
        self._site = site
        self._cut = cut
        self._at_cut = at_cut
        self._rewrite = rewrite
        self.was_cut = threading.Event()
        self.writes: list[Write] = []
        self.kubeconfig = directory / "proxy.kubeconfig"
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10), "the proxy listens"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the proxy stops"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        admin = pair(self._site.pki, "admin")
        context = ssl.create_default_context(cafile=str(self._site.pki / "ca.crt"))
        context.load_cert_chain(admin.certificate, admin.key)
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            self._session = session
            application = web.Application(client_max_size=2**24)
            application.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._write_kubeconfig(runner.addresses[0][1])
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()

    def _write_kubeconfig(self, port: int) -> None:
        cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{port}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}
        user = {"name": "proxy", "user": {}}
        values = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "users": [user]}
        self.kubeconfig.write_text(yaml.safe_dump(values | {"current-context": "proxy"}))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        number = 0
        if request.method in _WRITES:
            self.writes.append(Write(request.method, request.path, 0))
            number = len(self.writes)
        cut = self._cut if self._cut and self._cut.number == number and not self.was_cut.is_set() else None
        if self.was_cut.is_set() or (cut and cut.side == "before"):
            return self._sever(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = self._site.local_url + self._rewrite(request)
        async with self._session.request(request.method, url, headers=headers, data=body or None) as answer:
            if number:
                self.writes[number - 1] = Write(request.method, request.path, answer.status)
            if cut:
                await answer.read()
                return self._sever(request)
            return await self._pass_on(request, answer)

    async def _pass_on(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        with suppress(ConnectionError, aiohttp.ClientError):  # the operator was killed while it watched
            async for chunk in answer.content.iter_any():  # watches answer for ever
                await response.write(chunk)
            await response.write_eof()
        return response

    def _sever(self, request: web.Request) -> web.StreamResponse:
        if not self.was_cut.is_set():
            self._at_cut()
            self.was_cut.set()
        assert request.transport
        request.transport.abort()
        return web.Response(status=503)
