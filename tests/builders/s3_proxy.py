"""An HTTP proxy in front of an S3 server that makes the faults of a network on demand.

It forwards request by request, so that a fault hits exactly the requests it is meant for even on a kept connection.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

CHUNK = 64 * 1024
SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>'
NO_UPLOAD = b'<?xml version="1.0"?><Error><Code>NoSuchUpload</Code><Message>No such upload.</Message></Error>'
NOBODY = b"default backend - 404"
ANSWERS = {"busy": (503, SLOW_DOWN), "deny": (403, DENIED), "no-upload": (404, NO_UPLOAD), "nobody": (404, NOBODY)}
"""What a fault answers in the store's place."""
_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@dataclass
class Fault:
    """What goes wrong, with which requests, and how often."""

    kind: Literal[
        "reset", "busy", "deny", "nobody", "no-upload", "reset-upload", "reset-download", "lose-answer", "delay"
    ]
    method: str = ""
    """Only requests of this method; empty: all."""
    path: str = ""
    """Only requests with this text in path and query."""
    times: int = 1
    after_bytes: int = 0
    seconds: float = 0.0
    """For delay: before each chunk of a body."""
    done: int = 0

    def takes(self, method: str, path: str) -> bool:
        return self.done < self.times and self.method in {"", method} and self.path in path


@dataclass
class S3Proxy:
    """A running proxy."""

    url: str
    upstream: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of everything asked so far."""
    forwarded_bytes: int = 0
    """Bytes of request bodies that went on to the store."""
    dropped_headers: tuple[str, ...] = ()
    """Request headers that are left out, as a store would that does not know them; needs `credentials`."""
    credentials: Mapping[str, str] = field(default_factory=dict)
    on_request: Callable[[str, str], None] | None = None
    """Called before a request goes on."""
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        with self._lock:
            self._faults.clear()

    def seen(self, method: str, path: str) -> int:
        """Return how many requests of this method had this text in their path."""
        with self._lock:
            return sum(one == method and path in other for one, other in self.requests)

    def _take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault.takes(method, path):
                    fault.done += 1
                    return fault
        return None

    def _count(self, size: int) -> None:
        with self._lock:
            self.forwarded_bytes += size


@contextmanager
def s3_proxy(upstream: str, **settings: Any) -> Iterator[S3Proxy]:
    """Run a proxy on a free loopback port for the time of a `with` block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    proxy = server.proxy = S3Proxy(f"http://127.0.0.1:{server.server_address[1]}", upstream, **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: S3Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: broken connections are its trade."""


class _ResetError(Exception):
    """Cut this connection without a goodbye."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def handle_expect_100(self) -> bool:
        return True  # decided in _handle, once it is known whether the body is wanted

    def _handle(self) -> None:
        fault = self.server.proxy._take(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        try:
            self._maybe_reset(fault)
            if "100-continue" in self.headers.get("Expect", ""):
                self.send_response_only(100)
                self.end_headers()
            if fault and fault.kind in ANSWERS:
                self.rfile.read(length)
                status, body = ANSWERS[fault.kind]
                kind = "text/plain" if body == NOBODY else "application/xml"
                self._answer(status, {"Content-Type": kind}, body)
                return
            if self.server.proxy.on_request:
                self.server.proxy.on_request(self.command, self.path)
            self._forward(length, fault)
        except (_ResetError, OSError, http.client.HTTPException):
            self._reset()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

    @staticmethod
    def _maybe_reset(fault: Fault | None) -> None:
        if fault and fault.kind == "reset":
            raise _ResetError

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, length: int, fault: Fault | None) -> None:
        to = urlsplit(self.server.proxy.upstream)
        upstream = http.client.HTTPConnection(str(to.hostname), to.port, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self._headers().items():
                upstream.putheader(name, value)
            upstream.endheaders()
            for chunk in self._chunks(self.rfile, length, fault, "reset-upload"):
                upstream.send(chunk)
                self.server.proxy._count(len(chunk))
            response = upstream.getresponse()
            if fault and fault.kind == "lose-answer":
                response.read()
                raise _ResetError
            self._give_back(response, fault)
        finally:
            upstream.close()

    def _headers(self) -> dict[str, str]:
        kept = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        if not any(name.lower() in self.server.proxy.dropped_headers for name in kept):
            return kept
        kept = {
            name: value
            for name, value in kept.items()
            if name.lower() not in (*self.server.proxy.dropped_headers, "authorization", "x-amz-date")
        }
        # The signature covers the headers, so without one it has to be made anew.
        request = AWSRequest(self.command, f"{self.server.proxy.url}{self.path}", headers=kept)
        keys = self.server.proxy.credentials
        signer = Credentials(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"])
        S3SigV4Auth(signer, "s3", "us-east-1").add_auth(request)
        return dict(request.headers.items())

    def _give_back(self, response: http.client.HTTPResponse, fault: Fault | None) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        length = int(response.getheader("Content-Length") or 0)
        if response.getheader("Content-Length") is None and self.command != "HEAD":
            body = response.read()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.end_headers()
        if self.command != "HEAD":
            for chunk in self._chunks(response, length, fault, "reset-download"):
                self.wfile.write(chunk)

    @staticmethod
    def _chunks(source: Any, length: int, fault: Fault | None, kind: str) -> Iterator[bytes]:
        passed = 0
        while passed < length:
            if fault and fault.kind == kind and passed >= fault.after_bytes:
                raise _ResetError
            if fault and fault.kind == "delay":
                time.sleep(fault.seconds)
            chunk = source.read(min(CHUNK, length - passed))
            if not chunk:
                raise _ResetError
            passed += len(chunk)
            yield chunk

    def _reset(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        # Lingering for zero seconds turns close into RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass
