"""The object store: the few operations that a run needs, each repeated while the store is away.

boto3 with the classic transfer client: the CRT client ignores ``endpoint_url`` and would send a user's data to AWS.
Checksums only where S3 requires them: many compatible stores write botocore's checksum trailers into the file
or refuse them, so integrity is ours: size and SHA-256 in manifests.
Neighbours: connecting, patience, s3_errors, probing.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.exceptions import ClientError
from s3transfer.subscribers import BaseSubscriber

from darkroom_api.failures import FailureReason
from darkroom_api.uris import S3Location
from darkroom_trainer.errors import RunError
from darkroom_trainer.patience import Patience
from darkroom_trainer.s3_errors import STORE_ERRORS, IncompleteError, Verdict, diagnose

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from s3transfer.futures import TransferFuture
    from s3transfer.manager import TransferManager

T = TypeVar("T")
OnProgress = Callable[[int, int], None]
"""Told (bytes so far, bytes in all), from any thread, often: it must be quick."""

_MEBI: Final = 2**20
SMALL_OBJECT_BYTES: Final = 16 * _MEBI
"""Longest object that is read into memory: manifests, captions lists, indices are far below."""
SPARE_DISK_BYTES: Final = 64 * _MEBI
"""Room that a download leaves on the scratch volume."""
TRANSFER: Final = TransferConfig(
    multipart_threshold=16 * _MEBI,
    multipart_chunksize=16 * _MEBI,
    max_concurrency=8,
    preferred_transfer_client="classic",
)
_LOOK_SECONDS: Final = 0.25


@dataclass(frozen=True)
class StoredObject:
    """An object of a listing, with its whole key."""

    key: str
    size: int


class ChecksumError(Exception):
    """A downloaded file is not the one that was asked for."""

    def __init__(self, location: S3Location, *, expected: str, got: str) -> None:
        super().__init__(f"{location} has SHA-256 {got}, not {expected}")
        self.expected = expected
        self.got = got


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Watch(BaseSubscriber):
    """Follows one transfer: its bytes, and its end as an event."""

    def __init__(self, size: int, on_progress: OnProgress | None) -> None:
        self.ended = threading.Event()
        self._size, self._on_progress = size, on_progress
        self._done, self._lock = 0, threading.Lock()

    def on_progress(self, future: TransferFuture, bytes_transferred: int, **kwargs: Any) -> None:
        with self._lock:
            self._done += bytes_transferred
            done = self._done
        if self._on_progress:
            self._on_progress(done, self._size)

    def on_done(self, future: TransferFuture, **kwargs: Any) -> None:
        self.ended.set()


class Store:
    """An S3 store whose every operation waits out an outage and fails with a reason a user can act on."""

    def __init__(self, client: S3Client, *, patience: Patience, page_size: int = 1000) -> None:
        self._client = client
        self._patience = patience
        self._page_size = page_size
        self._manager: TransferManager = create_transfer_manager(client, TRANSFER)
        self.endpoint: Final = _shown(client.meta.endpoint_url)
        self.honours_conditions = True
        """False: the store ignores If-None-Match, so creating looks first (see `probing.probe`)."""

    def uninterrupted(self) -> Store:
        """Return the same store for work that a request to stop must not break off: saving."""
        twin = Store(self._client, patience=replace(self._patience, check=_go_on), page_size=self._page_size)
        twin.honours_conditions = self.honours_conditions
        return twin

    def list(self, location: S3Location) -> list[StoredObject]:
        """Return all objects below a prefix, in the order of their keys."""

        def pages() -> list[StoredObject]:
            paginator = self._client.get_paginator("list_objects_v2")
            found = paginator.paginate(
                Bucket=location.bucket, Prefix=_folder(location), PaginationConfig={"PageSize": self._page_size}
            )
            return [StoredObject(item["Key"], item["Size"]) for page in found for item in page.get("Contents", [])]

        return self._run(pages, "listing", location)

    def size(self, location: S3Location) -> int:
        """Return an object's size in bytes."""
        return self._run(lambda: self._head(location), "looking at", location)

    def has(self, location: S3Location, *, size: int) -> bool:
        """Tell whether there is an object of this size."""
        return self._run(lambda: self._exists(location, size), "looking at", location)

    def read(self, location: S3Location) -> bytes:
        """Return the content of a small object."""

        def get() -> bytes:
            response = self._client.get_object(Bucket=location.bucket, Key=location.key)
            if response["ContentLength"] > SMALL_OBJECT_BYTES:
                raise RunError(
                    FailureReason.INTERNAL_ERROR,
                    f"{location} has {response['ContentLength']} bytes; at most {SMALL_OBJECT_BYTES} are read at once",
                )
            return response["Body"].read()

        return self._run(get, "reading", location)

    def find(self, location: S3Location) -> bytes | None:
        """Return the content of a small object, or None if there is none."""
        try:
            return self.read(location)
        except RunError as error:
            if error.reason is FailureReason.NOT_FOUND:
                return None
            raise

    def download(
        self, location: S3Location, path: Path, *, sha256: str | None = None, on_progress: OnProgress | None = None
    ) -> None:
        """Bring an object to a path; whatever happens, the path holds the whole file or nothing.

        Raises:
            ChecksumError: The content is not the one with this SHA-256.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{secrets.token_hex(8)}")
        try:
            self._run(lambda: self._download(location, part, on_progress), "downloading", location)
            if sha256 and (got := sha256_of(part)) != sha256:
                raise ChecksumError(location, expected=sha256, got=got)
            _sync(part)
            part.replace(path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)

    def _download(self, location: S3Location, part: Path, on_progress: OnProgress | None) -> None:
        size = self._head(location)
        _check_space(part.parent, size, location)
        watch = _Watch(size, on_progress)
        self._follow(self._manager.download(location.bucket, location.key, str(part), subscribers=[watch]), watch)
        if (got := part.stat().st_size) != size:
            raise IncompleteError(f"{got} of {size} bytes arrived")

    def upload(self, path: Path, location: S3Location) -> None:
        """Put a file into the store, in parts if it is large, and look that all of it is there."""
        size = path.stat().st_size
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"

        def put() -> None:
            watch = _Watch(size, None)
            future = self._manager.upload(
                str(path), location.bucket, location.key, extra_args={"ContentType": kind}, subscribers=[watch]
            )
            self._follow(future, watch)
            if (got := self._head(location)) != size:
                raise IncompleteError(f"{got} of {size} bytes are in the store")

        self._run(put, "uploading", location)

    def create(self, location: S3Location, data: bytes) -> None:
        """Write a small object that nobody has written yet.

        The same content there already is success: the answer to an earlier attempt may have been lost.

        Raises:
            RunError: There is other content; it stays as it is.
        """
        if self._run(lambda: self._create(location, data), "creating", location):
            return
        if (there := self.read(location)) != data:
            raise RunError(
                FailureReason.INTERNAL_ERROR,
                f"{location} exists with other content: {len(there)} bytes, SHA-256 {_digest(there)}, "
                f"not {len(data)} bytes, {_digest(data)}; it is never overwritten",
                advice="Look for another writer below this prefix; if there is none, report it with the pod's log.",
            )

    def _create(self, location: S3Location, data: bytes) -> bool:
        bucket, key = location.bucket, location.key
        if not self.honours_conditions:
            if self._exists(location):
                return False
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType="application/json")
            return True
        try:
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType="application/json", IfNoneMatch="*")
        except ClientError as error:
            if diagnose(error).verdict is Verdict.EXISTS:
                return False
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 501:  # NotImplemented
                self.honours_conditions = False
                return self._create(location, data)
            raise
        return True

    def replace(self, location: S3Location, data: bytes) -> None:
        """Write a small object over whatever is there; only for what other objects could rebuild."""
        self._run(
            lambda: self._client.put_object(
                Bucket=location.bucket, Key=location.key, Body=data, ContentType="application/json"
            ),
            "writing",
            location,
        )

    def delete(self, locations: Sequence[S3Location]) -> None:
        """Delete objects one by one in this order; one that is gone already is no error."""
        for location in locations:
            # One by one: the bulk request needs a checksum header that some stores refuse.
            self._run(
                partial(self._client.delete_object, Bucket=location.bucket, Key=location.key), "deleting", location
            )

    def abort_uploads(self, location: S3Location) -> int:
        """Give up every unfinished multipart upload below a prefix; its parts cost money and nobody can see them."""

        def unfinished() -> list[tuple[str, str]]:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=location.bucket, Prefix=_folder(location)
            )
            return [(item["Key"], item["UploadId"]) for page in pages for item in page.get("Uploads", [])]

        found = self._run(unfinished, "looking for unfinished uploads below", location)
        for key, upload in found:
            at = S3Location(location.bucket, key)
            self._run(partial(self._abort, at, upload), "aborting an upload of", at)
        return len(found)

    def _abort(self, location: S3Location, upload: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=location.bucket, Key=location.key, UploadId=upload)
        except ClientError as error:
            if diagnose(error).verdict is not Verdict.MISSING:
                raise

    def _head(self, location: S3Location) -> int:
        return self._client.head_object(Bucket=location.bucket, Key=location.key)["ContentLength"]

    def _exists(self, location: S3Location, size: int | None = None) -> bool:
        try:
            return self._head(location) == size or size is None
        except ClientError as error:
            if diagnose(error).verdict is Verdict.MISSING:
                return False
            raise

    def _follow(self, future: TransferFuture, watch: _Watch) -> None:
        while not watch.ended.wait(_LOOK_SECONDS):
            try:
                self._patience.check()
            except BaseException:
                future.cancel()
                raise
        future.result()

    def _run(self, operation: Callable[[], T], verb: str, location: S3Location) -> T:
        try:
            return self._patience.run(operation, what=f"{verb} {location} at {self.endpoint}")
        except RunError as error:
            if error.reason is FailureReason.NOT_FOUND:
                raise RunError(error.reason, self._missing(location)) from error
            raise

    def _missing(self, location: S3Location) -> str:
        try:
            self._client.head_bucket(Bucket=location.bucket)
        except STORE_ERRORS as error:
            if diagnose(error).verdict is Verdict.MISSING:
                return f"{location}: there is no bucket {location.bucket!r} at {self.endpoint}"
        return f"{location}: there is no such object in bucket {location.bucket!r} at {self.endpoint}"


def _go_on() -> None:
    """Never give up early."""


def _folder(location: S3Location) -> str:
    return f"{location.key}/" if location.key else ""


def _shown(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"  # a user name or password in the address stays out of messages


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def free_bytes(directory: Path) -> int:
    """Return how many bytes the volume of a directory has left; the directory is made."""
    directory.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(directory).free


def _check_space(directory: Path, size: int, location: S3Location) -> None:
    free = free_bytes(directory)
    if size + SPARE_DISK_BYTES > free:
        raise RunError(
            FailureReason.INTERNAL_ERROR,
            f"{location} has {size} bytes, but only {free} are free on the pod's scratch volume",
            advice="Raise compute.scratchSize, or give the node more disk.",
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
