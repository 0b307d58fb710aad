"""The pod's only open port: ``GET /progress``, ``/metrics`` and ``/healthz``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from darkroom_trainer import metrics
from darkroom_trainer.reporting import Reporter

LOG: Final = logging.getLogger(__name__)
_IDLE_SECONDS: Final = 10.0
"""A connection that says nothing for this long is closed, so that nobody can hold threads."""

Page = tuple[str, Callable[[], bytes]]


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


def serve(reporter: Reporter, port: int, *, host: str = "0.0.0.0") -> Server:  # noqa: S104 - the operator asks from outside
    """Answer at a port until the server is closed; port 0 takes a free one."""
    pages: dict[str, Page] = {
        "/progress": ("application/json", lambda: reporter.snapshot().model_dump_json(by_alias=True).encode()),
        "/metrics": (metrics.CONTENT_TYPE, lambda: metrics.exposition(reporter)),
        "/healthz": ("text/plain; charset=utf-8", lambda: b"ok\n"),
    }
    http = ThreadingHTTPServer((host, port), _handler(pages))
    http.daemon_threads = True
    return Server(http)


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
