"""What goes with a transfer of the store: its settings, who follows it, and the room it needs on the disk."""

from __future__ import annotations

import math
import mimetypes
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from boto3.s3.transfer import TransferConfig
from s3transfer.subscribers import BaseSubscriber

from darkroom_api.failures import FailureReason
from darkroom_api.uris import S3Location
from darkroom_trainer.errors import RunError

if TYPE_CHECKING:
    from s3transfer.futures import TransferFuture

OnProgress = Callable[[int, int], None]
"""Told (bytes so far, bytes in all), from any thread, often: it must be quick."""

_MEBI: Final = 2**20
SPARE_DISK_BYTES: Final = 64 * _MEBI
"""Room that a download leaves on the scratch volume."""
TRANSFER: Final = TransferConfig(
    multipart_threshold=16 * _MEBI,
    multipart_chunksize=16 * _MEBI,
    max_concurrency=8,
    preferred_transfer_client="classic",
)
SHA256_METADATA: Final = "sha256"
"""Name of the user metadata with a file's SHA-256, for files that no manifest names."""


class Pulse:
    """Remembers when bytes of a transfer last moved, over all its attempts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._last = clock, -math.inf

    def beat(self) -> None:
        """Note that bytes moved."""
        self._last = self._clock()

    def last(self) -> float:
        """Return when that was, by the clock; minus infinity before the first."""
        return self._last


class Watch(BaseSubscriber):
    """Follows one transfer: its bytes, and its end as an event."""

    def __init__(self, size: int, on_progress: OnProgress | None, pulse: Pulse) -> None:
        self.ended = threading.Event()
        self._size, self._on_progress, self._pulse = size, on_progress, pulse
        self._done, self._lock = 0, threading.Lock()

    def on_progress(self, future: TransferFuture, bytes_transferred: int, **kwargs: Any) -> None:
        if bytes_transferred > 0:  # what a retry takes back is negative
            self._pulse.beat()
        with self._lock:
            self._done += bytes_transferred
            done = self._done
        if self._on_progress:
            self._on_progress(done, self._size)

    def on_done(self, future: TransferFuture, **kwargs: Any) -> None:
        self.ended.set()


def upload_arguments(name: str, sha256: str | None) -> dict[str, Any]:
    """Return what is kept beside an object: its media type and perhaps its SHA-256."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return {"ContentType": kind, **({"Metadata": {SHA256_METADATA: sha256}} if sha256 else {})}


def free_bytes(directory: Path) -> int:
    """Return how many bytes the volume of a directory has left; the directory is made."""
    directory.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(directory).free


def check_space(directory: Path, size: int, location: S3Location) -> None:
    """Refuse a download that would fill the scratch volume.

    Raises:
        RunError: How much is free.
    """
    free = free_bytes(directory)
    if size + SPARE_DISK_BYTES > free:
        raise RunError(
            FailureReason.INTERNAL_ERROR,
            f"{location} has {size} bytes, but only {free} are free on the pod's scratch volume",
            advice="Raise compute.scratchSize, or give the node more disk.",
        )
