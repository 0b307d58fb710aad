"""Addresses of objects: what a URI of the spec means, and which object keys are safe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

S3_PATTERN: Final = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\\\x00]*)?$"
"""``s3://bucket`` or ``s3://bucket/key``; bucket names as S3 allows them."""
_S3: Final = re.compile(S3_PATTERN)


@dataclass(frozen=True)
class S3Location:
    """A bucket and a key or prefix in it (without leading or trailing slash)."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}"

    def join(self, *parts: str) -> S3Location:
        """Return the location below this one."""
        return S3Location(self.bucket, "/".join(part for part in (self.key, *parts) if part))


def parse_s3(uri: str) -> S3Location:
    """Parse ``s3://bucket/key``.

    Raises:
        ValueError: The text is no such URI, or its key could leave its folder.
    """
    if not _S3.match(uri):
        raise ValueError(f"{uri!r} is not allowed; give s3://BUCKET/KEY, such as s3://models/v1-5-pruned.safetensors")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    key = key.strip("/")
    if key:
        check_key(key)
    return S3Location(bucket, key)


def check_key(key: str) -> str:
    """Return the object key if it is safe to turn into a path below a folder.

    Raises:
        ValueError: The key is absolute, too long for a file system, or holds ``..``, a backslash or NUL.
    """
    parts = key.split("/")
    if key.startswith("/") or "\\" in key or "\x00" in key or ".." in parts:
        raise ValueError(f"object key {key!r} is not allowed: no leading slash, backslash, NUL or '..'")
    if any(len(part.encode()) > 255 for part in parts):  # NAME_MAX of Linux file systems
        raise ValueError(f"object key {key!r} is not allowed: a part between slashes is longer than 255 bytes")
    return key
