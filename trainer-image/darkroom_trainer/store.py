"""The object store: the few operations that a run needs, each repeated while the store is away.

boto3 with the classic transfer client: the CRT client ignores ``endpoint_url`` and would send a user's data to AWS.
Checksums only where S3 requires them: many compatible stores write botocore's checksum trailers into the file
or refuse them, so integrity is ours: size and SHA-256 in manifests.
Neighbours: transferring, connecting, patience, s3_errors, probing.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from boto3.s3.transfer import create_transfer_manager
from botocore.exceptions import ClientError

from darkroom_api.failures import FailureReason
from darkroom_api.uris import S3Location
from darkroom_trainer.errors import RunError
from darkroom_trainer.patience import Patience
from darkroom_trainer.s3_errors import (
    NO_SUCH_UPLOAD,
    STORE_ERRORS,
    IncompleteError,
    NobodyError,
    Verdict,
    code_of,
    diagnose,
    is_bare_missing,
)
from darkroom_trainer.transferring import (
    SHA256_METADATA,
    TRANSFER,
    OnProgress,
    Pulse,
    Watch,
    check_space,
    upload_arguments,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef, PaginatorConfigTypeDef
    from s3transfer.futures import TransferFuture
    from s3transfer.manager import TransferManager

T = TypeVar("T")
SMALL_OBJECT_BYTES: Final = 16 * 2**20
"""Longest object that is read into memory: manifests, captions lists, indices are far below."""
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
        self.is_proven = False
        """True: S3 has been spoken here, so a 404 without an S3 code comes from something that stands in between."""

    def uninterrupted(self) -> Store:
        """Return the same store for work that a request to stop must not break off: saving."""
        twin = Store(self._client, patience=replace(self._patience, check=_go_on), page_size=self._page_size)
        twin.honours_conditions, twin.is_proven = self.honours_conditions, self.is_proven
        return twin

    def list(self, location: S3Location, *, at_most: int | None = None) -> list[StoredObject]:
        """Return all objects below a prefix, or the first of them, in the order of their keys."""

        def pages() -> list[StoredObject]:
            paginator = self._client.get_paginator("list_objects_v2")
            limits: PaginatorConfigTypeDef = {"PageSize": self._page_size}
            if at_most is not None:
                limits["MaxItems"] = at_most
            found = paginator.paginate(Bucket=location.bucket, Prefix=_folder(location), PaginationConfig=limits)
            return [StoredObject(item["Key"], item["Size"]) for page in found for item in page.get("Contents", [])]

        return self._run(pages, "listing", location)

    def size(self, location: S3Location) -> int:
        """Return an object's size in bytes."""
        return self._run(lambda: self._head(location), "looking at", location)

    def has(self, location: S3Location, *, size: int | None = None) -> bool:
        """Tell whether there is an object, of this size if one is given."""
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

    def has_copy(self, location: S3Location, *, size: int, sha256: str) -> bool:
        """Tell whether `upload` or `copy` has put this content there; False if the store keeps no metadata."""

        def same() -> bool:
            try:
                found = self._look(location)
            except ClientError as error:
                if self._is_missing(error):
                    return False
                raise
            return found["ContentLength"] == size and found.get("Metadata", {}).get(SHA256_METADATA) == sha256

        return self._run(same, "looking at", location)

    def download(
        self,
        location: S3Location,
        path: Path,
        *,
        size: int | None = None,
        sha256: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Bring an object to a path; unless the pod's node dies, the path holds the whole file or nothing.

        Args:
            location: The object.
            path: Where to put it.
            size: Its size, if a listing has told: that saves a request, which for small files is half of the time.
            sha256: What it must be.
            on_progress: Told of the bytes.

        Raises:
            ChecksumError: The content is not the one with this SHA-256.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{secrets.token_hex(8)}")
        pulse = Pulse(self._patience.clock)
        sizes = iter(() if size is None else (size,))  # believed once: the object may have changed since the listing

        def fetch() -> None:
            expected = next(sizes, None)
            expected = self._head(location) if expected is None else expected
            check_space(part.parent, expected, location)
            watch = Watch(expected, on_progress, pulse)
            self._follow(self._manager.download(location.bucket, location.key, str(part), subscribers=[watch]), watch)
            if (got := part.stat().st_size) != expected:
                raise IncompleteError(f"{got} of {expected} bytes arrived")

        try:
            self._run(fetch, "downloading", location, heard=pulse.last)
            if sha256 and (got := sha256_of(part)) != sha256:
                raise ChecksumError(location, expected=sha256, got=got)
            part.replace(path)  # no fsync: the scratch volume lives no longer than the pod
        finally:
            part.unlink(missing_ok=True)

    def upload(self, path: Path, location: S3Location, *, sha256: str | None = None) -> None:
        """Put a file into the store, in parts if it is large, and look that all of it is there.

        Args:
            path: The file.
            location: Where to put it.
            sha256: Its SHA-256, to be kept with it for `has_copy`.
        """
        size, pulse = path.stat().st_size, Pulse(self._patience.clock)
        extra = upload_arguments(path.name, sha256)

        def put() -> None:
            watch = Watch(size, None, pulse)
            future = self._manager.upload(
                str(path), location.bucket, location.key, extra_args=extra, subscribers=[watch]
            )
            self._follow(future, watch)
            self._check_arrived(location, size)

        self._run(put, "uploading", location, heard=pulse.last)

    def copy(self, source: S3Location, location: S3Location, *, size: int, sha256: str) -> None:
        """Copy an object inside the store, replacing what is there, and look that all of it has arrived."""
        pulse = Pulse(self._patience.clock)
        extra = {**upload_arguments(source.key, sha256), "MetadataDirective": "REPLACE"}

        def put() -> None:
            watch = Watch(size, None, pulse)
            origin = {"Bucket": source.bucket, "Key": source.key}
            future = self._manager.copy(origin, location.bucket, location.key, extra_args=extra, subscribers=[watch])
            self._follow(future, watch)
            self._check_arrived(location, size)

        self._run(put, f"copying {source} to", location, heard=pulse.last)

    def _check_arrived(self, location: S3Location, size: int) -> None:
        if (got := self._head(location)) != size:
            raise IncompleteError(f"{got} of {size} bytes are in the store")

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
            if code_of(error) != NO_SUCH_UPLOAD and diagnose(error).verdict is not Verdict.MISSING:
                raise

    def _look(self, location: S3Location) -> HeadObjectOutputTypeDef:
        try:
            return self._client.head_object(Bucket=location.bucket, Key=location.key)
        except ClientError as error:
            if not (self.is_proven and is_bare_missing(error)):
                raise
        # An answer to HEAD has no body, so not even a real store can say in it what is missing. To GET it can.
        body = self._client.get_object(Bucket=location.bucket, Key=location.key)["Body"]
        body.close()
        raise NobodyError("HTTP 404 for an object that is there")

    def _head(self, location: S3Location) -> int:
        return self._look(location)["ContentLength"]

    def _exists(self, location: S3Location, size: int | None = None) -> bool:
        try:
            return self._head(location) == size or size is None
        except ClientError as error:
            if self._is_missing(error):
                return False
            raise

    def _is_missing(self, error: ClientError) -> bool:
        return diagnose(error).verdict is Verdict.MISSING and not (self.is_proven and is_bare_missing(error))

    def _follow(self, future: TransferFuture, watch: Watch) -> None:
        while not watch.ended.wait(_LOOK_SECONDS):
            try:
                self._patience.check()
            except BaseException:
                future.cancel()
                raise
        future.result()

    def _run(
        self,
        operation: Callable[[], T],
        verb: str,
        location: S3Location,
        *,
        heard: Callable[[], float] = lambda: -math.inf,
    ) -> T:
        def ask() -> T:
            try:
                return operation()
            except ClientError as error:
                if self.is_proven and is_bare_missing(error):
                    raise NobodyError("HTTP 404 that is not the store's") from error
                raise

        try:
            return self._patience.run(ask, what=f"{verb} {location} at {self.endpoint}", heard=heard)
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
