"""The S3 store as this command line needs it: list, read, compare, create."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound
from pydantic import ValidationError

from darkroom_api.layout import MANIFEST
from darkroom_api.objects import Manifest
from darkroom_api.uris import S3Location
from darkroom_cli.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Access:
    """How a store is reached: what flags or a resource say. Keys come from boto3's usual places."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None


@dataclass(frozen=True)
class Entry:
    """What a store says about an object without sending it."""

    size: int
    etag: str
    """Of an object written in one piece usually its MD5; of an encrypted or multipart one anything else."""


def is_content(entry: Entry, data: bytes, *, read: Callable[[], bytes]) -> bool:
    """Tell whether an object holds just these bytes; it is downloaded only where size and ETag leave it open."""
    if entry.size != len(data):
        return False
    return entry.etag == hashlib.md5(data, usedforsecurity=False).hexdigest() or read() == data


class Store:
    """A store. Every failure is a `UserError` that names the address."""

    def __init__(self, access: Access) -> None:
        try:
            session = boto3.Session(profile_name=access.profile, region_name=access.region)
            self._client: S3Client = session.client(
                "s3",
                endpoint_url=access.endpoint_url,
                region_name=access.region or session.region_name or "us-east-1",
                config=Config(
                    s3={"addressing_style": "path"},
                    connect_timeout=5,
                    read_timeout=60,
                    retries={"mode": "standard", "max_attempts": 4},
                    request_checksum_calculation="when_required",  # S3 servers other than AWS refuse the new trailers
                    response_checksum_validation="when_required",
                ),
            )
        except (ProfileNotFound, BotoCoreError, ValueError) as error:
            raise UserError(f"S3 store: {error}; check --profile and --endpoint-url") from error
        self.endpoint = self._client.meta.endpoint_url

    def list(self, prefix: S3Location) -> dict[str, Entry]:
        """Return every object below a prefix by its key."""
        entries = {}
        with self._told(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=prefix.bucket, Prefix=f"{prefix.key}/" if prefix.key else ""
            )
            for page in pages:
                for item in page.get("Contents", []):
                    entries[item["Key"]] = Entry(item["Size"], item["ETag"].strip('"'))
        return entries

    def read(self, location: S3Location) -> bytes:
        """Return an object's content."""
        with self._told(location):
            return self._client.get_object(Bucket=location.bucket, Key=location.key)["Body"].read()

    def entry(self, location: S3Location) -> Entry | None:
        """Return what the store says about an object, or None if there is none."""
        try:
            with self._told(location):
                found = self._client.head_object(Bucket=location.bucket, Key=location.key)
        except MissingError:
            return None
        return Entry(found["ContentLength"], found["ETag"].strip('"'))

    def holds(self, location: S3Location, entry: Entry, data: bytes) -> bool:
        """Tell whether the object there, of which the store said `entry`, holds just these bytes."""
        return is_content(entry, data, read=lambda: self.read(location))

    def create(self, location: S3Location, data: bytes) -> bool:
        """Write an object unless there is one already; tell whether it was written."""
        try:
            with self._told(location):
                self._client.put_object(Bucket=location.bucket, Key=location.key, Body=data, IfNoneMatch="*")
        except TakenError:
            return False
        return True

    def manifest(self, directory: S3Location) -> Manifest | None:
        """Return the manifest of a directory, or None if the directory does not exist (yet)."""
        try:
            return Manifest.model_validate_json(self.read(directory.join(MANIFEST)))
        except MissingError:
            return None
        except ValidationError as error:
            raise UserError(
                f"{directory.join(MANIFEST)}: not a manifest of Darkroom: {error.error_count()} errors; "
                "was it written by another program?"
            ) from error

    @contextmanager
    def _told(self, location: S3Location) -> Iterator[None]:
        try:
            yield
        except NoCredentialsError as error:
            raise UserError(
                f"{location}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --profile NAME"
            ) from error
        except ClientError as error:
            raise self._explained(location, error) from error
        except BotoCoreError as error:
            raise UserError(
                f"{location}: the store at {self.endpoint} does not answer: {error}; check --endpoint-url"
            ) from error

    def _explained(self, location: S3Location, error: ClientError) -> UserError:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return UserError(
                f"{location}: the store at {self.endpoint} has no bucket {location.bucket!r}; make it first"
            )
        if status == 404:
            return MissingError(f"{location}: there is no such object in the store at {self.endpoint}")
        if status == 412:
            return TakenError(f"{location}: exists already")
        if status in {401, 403}:
            return UserError(
                f"{location}: the store at {self.endpoint} refuses the credentials ({code}); "
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or --profile, and what that key may do"
            )
        return UserError(f"{location}: the store at {self.endpoint} answers {status} {code}")


class MissingError(UserError):
    """There is no such object."""


class TakenError(UserError):
    """There is such an object already."""


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
