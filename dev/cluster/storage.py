"""An S3 server: SeaweedFS, which a Python package brings as one program and which starts in under a second.

The full cluster runs one on the bridge's address; a test takes an `ObjectStore` of its own on loopback.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dev.cluster import binaries
from dev.cluster.paths import cache_directory
from dev.cluster.ports import free_ports
from dev.cluster.processes import Record, Supervisor
from dev.cluster.scratch import Scratch
from dev.cluster.waiting import wait_for

REGION = "us-east-1"
VOLUMES = 10_000
HELPER_PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "admin", "admin.grpc", "grpc")


@dataclass(frozen=True)
class Endpoint:
    """How to reach a store, from a test, from a pod or from a command line."""

    url: str
    access_key: str
    secret_key: str
    region: str = REGION

    def environment(self) -> dict[str, str]:
        """Return what every S3 client understands."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def new_endpoint(address: str, port: int) -> Endpoint:
    """Return an endpoint with fresh credentials."""
    return Endpoint(f"http://{address}:{port}", f"AK{secrets.token_hex(9).upper()}", secrets.token_urlsafe(30))


def command(
    program: Path, *, address: str, port: int, data: Path, sockets: Path, buckets: tuple[str, ...]
) -> list[str]:
    """Return the server's command line.

    A busy port would silently become the next one, and it opens nine besides the one that is asked for: all are chosen
    here. Uploading to a bucket that does not exist is an error, as it is elsewhere.
    """
    ports = dict(zip(HELPER_PORTS, free_ports(len(HELPER_PORTS), address), strict=True))
    return [
        str(program),
        "-logtostderr=true",
        "mini",
        f"-dir={data}",
        f"-ip={address}",
        f"-ip.bind={address}",
        *([f"-bucket={','.join(buckets)}"] if buckets else []),
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        # By default as many as whole gigabytes are free; each bucket takes some, and the next upload fails.
        f"-volume.max={VOLUMES}",
        f"-s3.port={port}",
        f"-s3.port.grpc={ports['grpc']}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        f"-s3.localSocket={sockets / f's3-{port}.sock'}",
        f"-filer.localSocket={sockets / f'filer-{port}.sock'}",
        *(
            f"-{part}.port{suffix}={ports[part + suffix]}"
            for part in ("master", "volume", "filer", "admin")
            for suffix in ("", ".grpc")
        ),
    ]


def _connect(url: str, *, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout)


def _status(endpoint: Endpoint, method: str, path: str, *, body: bytes, timeout: float) -> int:
    """Return the status of one signed request; botocore signs in a tenth of the time it takes to import boto3."""
    headers = {"x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
    request = AWSRequest(method=method, url=endpoint.url + path, data=body, headers=headers)
    credentials = Credentials(endpoint.access_key, endpoint.secret_key)
    S3SigV4Auth(credentials, "s3", endpoint.region).add_auth(request)
    connection = _connect(endpoint.url, timeout=timeout)
    try:
        connection.request(method, path, body, dict(request.headers.items()))
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def keeps_objects(endpoint: Endpoint, bucket: str, *, timeout: float = 2.8) -> bool:
    """Write, read and remove a small object: a server that has lost its parts still answers, but keeps nothing."""
    deadline = time.monotonic() + timeout
    path = f"/{bucket}/.health-{secrets.token_hex(8)}"
    try:
        for method, body in (("PUT", b"healthy"), ("GET", b""), ("DELETE", b"")):
            left = max(deadline - time.monotonic(), 0.01)
            if _status(endpoint, method, path, body=body, timeout=left) >= 300:
                return False
    except (OSError, http.client.HTTPException):
        return False
    return True


def is_healthy(url: str) -> bool:
    """Tell whether an S3 server answers there; any status will do, since an anonymous request may be refused."""
    connection = _connect(url, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start(
    supervisor: Supervisor, endpoint: Endpoint, *, data: Path, sockets: Path, buckets: tuple[str, ...] = ()
) -> Record:
    """Start the server at exactly this endpoint and return when it answers."""
    parts = urlsplit(endpoint.url)
    assert parts.hostname is not None, "an endpoint made by new_endpoint"
    assert parts.port is not None, "an endpoint made by new_endpoint"
    sweep_sockets(now=time.time())
    data.mkdir(parents=True, exist_ok=True)
    sockets.mkdir(parents=True, exist_ok=True)
    argv = command(
        binaries.weed(), address=parts.hostname, port=parts.port, data=data, sockets=sockets, buckets=buckets
    )
    record = supervisor.start("seaweedfs", argv, environment=endpoint.environment())
    wait_for(
        lambda: is_healthy(endpoint.url),
        f"S3 answers at {endpoint.url}",
        timeout=60,
        pause=0.05,
        check=lambda: supervisor.check(record),
    )
    return record


def _living_ports() -> set[str]:
    """Return every port that a process of this machine was given on its command line."""
    arguments = (argument for process in psutil.process_iter(["cmdline"]) for argument in process.info["cmdline"] or ())
    return {argument.partition(".port.grpc=")[2] for argument in arguments} - {""}


def sweep_sockets(directory: Path = Path("/tmp"), *, now: float) -> None:
    """Remove the sockets of servers that were killed: nobody listens, and they are not just being made.

    A port that a living server was given is left alone whatever its socket looks like: without it every upload fails.
    """
    living = _living_ports()
    for path in directory.glob("seaweedfs-*.sock"):
        if path.stem.rpartition("-")[2] in living:
            continue
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # a listener with a full queue answers EAGAIN instead of making this wait
            if now - path.stat().st_mtime > 60 and probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()


def _sockets(record: Record | None) -> Iterator[Path]:
    """Yield the sockets through which a server's parts speak: they lie in /tmp whatever one says."""
    for argument in record.argv if record else ():
        part, found, port = argument.removeprefix("-").partition(".port.grpc=")
        if found:
            yield Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock")


def has_sockets(supervisor: Supervisor) -> bool:
    """Tell whether the parts of the server can find each other; without, it works until a connection is lost."""
    return all(path.exists() for path in _sockets(supervisor.find("seaweedfs")))


def stop(supervisor: Supervisor, *, grace: float = 5.0) -> None:
    """Stop the server and remove the sockets that it leaves."""
    record = supervisor.find("seaweedfs")
    supervisor.stop("seaweedfs", grace=grace)
    for path in _sockets(record):
        path.unlink(missing_ok=True)


class ObjectStore:
    """An S3 server on loopback for the time of a `with` block; it is killed with this process, however that ends.

    `stop` and `start` in between make the store go away and come back at the same address with the same objects.
    """

    def __init__(self, *, buckets: tuple[str, ...] = ()) -> None:
        self._buckets = buckets
        self._scratch: Scratch | None = None
        self._supervisor: Supervisor | None = None
        self.endpoint = new_endpoint("127.0.0.1", free_ports(1)[0])

    def __enter__(self) -> Self:
        self._scratch = Scratch(cache_directory() / "stores")
        directory = self._scratch.path
        self._supervisor = Supervisor(directory / "processes", directory / "logs", tied=True)
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self) -> None:
        """Start the server; what it held before is still there."""
        assert self._supervisor is not None, "only inside the with block"
        assert self._scratch is not None, "only inside the with block"
        data, sockets = self._scratch.path / "data", self._scratch.path / "sockets"
        start(self._supervisor, self.endpoint, data=data, sockets=sockets, buckets=self._buckets)

    def stop(self) -> None:
        """Take the server away, as an outage would; its objects stay."""
        assert self._supervisor is not None, "only inside the with block"
        stop(self._supervisor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor is not None:
            stop(self._supervisor, grace=0.0)
        if self._scratch is not None:
            self._scratch.remove()
