"""The pod's only open port: ``GET /progress``, ``/metrics`` and ``/healthz``."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final

from darkroom_trainer import metrics
from darkroom_trainer.reporting import Reporter

LOG: Final = logging.getLogger(__name__)
_IDLE_SECONDS: Final = 10.0
"""A connection that says nothing for this long is closed, so that nobody can hold threads."""

Page = tuple[str, Callable[[], bytes]]


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the name service for a name that nobody needs.
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]


class _DualStackServer(_HTTPServer):
    address_family = socket.AF_INET6


class Server:
    """A running HTTP server; `close` ends it."""

    def __init__(self, http: ThreadingHTTPServer) -> None:
        self._http = http
        self.port: Final[int] = http.server_address[1]
        self._thread = threading.Thread(target=http.serve_forever, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def serve(reporter: Reporter, port: int, *, host: str | None = None) -> Server:
    """Answer at a port until the server is closed; port 0 takes a free one.

    Without a host it listens on every address of both families, since a pod may have but one of either kind.
    """
    pages: dict[str, Page] = {
        "/progress": ("application/json", lambda: reporter.snapshot().model_dump_json(by_alias=True).encode()),
        "/metrics": (metrics.CONTENT_TYPE, lambda: metrics.exposition(reporter)),
        "/healthz": ("text/plain; charset=utf-8", lambda: b"ok\n"),
    }
    return Server(_listen(host, port, _handler(pages)))


def _listen(host: str | None, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    if host is not None:
        return _HTTPServer((host, port), handler)
    try:
        return _DualStackServer(("::", port), handler)
    except OSError as error:
        LOG.debug("No IPv6 here (%s); listening on IPv4 alone", error)
        return _HTTPServer(("0.0.0.0", port), handler)  # noqa: S104 - the operator asks from outside


def _handler(pages: dict[str, Page]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _IDLE_SECONDS
        server_version = "darkroom"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            kind, body = page[0], page[1]()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            LOG.debug(format, *args)

    return Handler
