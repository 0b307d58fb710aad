"""Uploads in the background: training goes on while a checkpoint travels, and nothing half-done is ever visible.

Order is everything: files first, each looked at in the store, then ``manifest.json``, which only one writer can
create; what a directory means to others (record, index, retention) follows after. `restoring` is the reader.
A failure is kept and raised in the trainer's own thread, so that it reaches the exit code.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from darkroom_api.failures import FailureReason
from darkroom_api.layout import EVENTS, INDEX, MANIFEST, checkpoint_directory, final_weights_file
from darkroom_api.objects import FileRecord, Index, Manifest, ValidationRecord
from darkroom_api.plan import RunPlan
from darkroom_api.progress import Stage
from darkroom_api.uris import S3Location
from darkroom_trainer.errors import RunError
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.restoring import WEIGHTS_SUFFIXES, Restored, checkpoint_record, count_pictures, parse_manifest
from darkroom_trainer.retention import superseded
from darkroom_trainer.store import Store, sha256_of

LOG: Final = logging.getLogger(__name__)

QUEUE_LENGTH: Final = 16
"""Directories that may wait; then training waits. Four epochs' worth of checkpoint, samples, events and state."""


@dataclass(frozen=True)
class _Task:
    directory: str | None
    """None: the last weights, which have a name of their own and no manifest."""
    files: tuple[Path, ...]
    epoch: int
    step: int
    validation_loss: float | None = None

    @property
    def is_state(self) -> bool:
        return self.directory is not None and self.directory.startswith("state/")


class Publisher:
    """A thread that makes finished directories durable, one after the other.

    Local files belong to the publisher from `publish` on and are removed once they are in the store
    (checkpoints when the next one is, since the last weights are published a second time).
    """

    def __init__(self, store: Store, plan: RunPlan, reporter: Reporter, *, queue_length: int = QUEUE_LENGTH) -> None:
        self._store, self._run, self._name, self._prefix = store, plan.run, plan.name, plan.prefix
        self._reporter, self._length = reporter, queue_length
        self._changed = threading.Condition()
        self._queue: deque[_Task] = deque()
        self._busy = self._closed = False
        self._failure: Exception | None = None
        self._samples: dict[int, int] = {}
        self._kept_locally: tuple[Path, ...] = ()
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def adopt(self, restored: Restored) -> None:
        """Take over what earlier attempts published: it stays in the report and in the index."""
        for record in restored.checkpoints:
            self._samples[record.epoch] = record.num_samples
            self._reporter.checkpointed(record)

    def publish(
        self, directory: str, files: Sequence[Path], *, epoch: int, step: int, validation_loss: float | None = None
    ) -> None:
        """Hand over a finished directory; wait only if too many are in the queue already.

        Args:
            directory: Its name below the run's prefix, such as ``checkpoints/epoch-000007``.
            files: What lies in it, by file name; never touched again by the caller.
            epoch: Epochs completed.
            step: Optimizer steps done.
            validation_loss: Of a checkpoint that was measured.

        Raises:
            RunError: An earlier directory could not be published.
        """
        self._put(_Task(directory, tuple(files), epoch, step, validation_loss))

    def publish_final(self, path: Path, epoch: int, step: int) -> None:
        """Hand over the last epoch's weights, for the name without a number."""
        self._put(_Task(None, (path,), epoch, step))

    def publish_events(self, path: Path, epoch: int, step: int) -> None:
        """Hand over an epoch's event file, which lies beside those of other epochs and has no manifest."""
        self._put(_Task(EVENTS, (path,), epoch, step))

    def check(self) -> None:
        """Raise the failure of the background thread, if there is one; cheap enough for every step."""
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Wait until everything handed over is durable.

        Raises:
            RunError: Something could not be published.
        """
        with self._changed:
            if waiting := len(self._queue) + self._busy:
                self._reporter.stage(Stage.UPLOADING, f"{waiting} directories wait for the store")
            self._changed.wait_for(lambda: self._failure is not None or not (self._queue or self._busy))
        self.check()

    def close(self) -> None:
        """Let the thread end after the directory at hand; what waits in the queue is given up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, task: _Task) -> None:
        with self._changed:
            if task.is_state:
                self._drop_older_states()
            self._changed.wait_for(lambda: self._failure is not None or len(self._queue) < self._length)
            self.check()
            self._queue.append(task)
            self._tell()

    def _drop_older_states(self) -> None:
        # In an outage only the newest state is worth its place in the queue and on the disk.
        for task in [task for task in self._queue if task.is_state]:
            self._queue.remove(task)
            _remove(task.files)

    def _tell(self) -> None:
        self._reporter.waiting(len(self._queue) + self._busy)
        self._changed.notify_all()

    def _work(self) -> None:
        while task := self._next():
            try:
                self._publish(task)
            except Exception as error:  # noqa: BLE001 - raised again in the trainer's thread by check()
                LOG.error("Publishing %s failed: %s", task.directory or "the last weights", error)  # noqa: TRY400
                with self._changed:
                    self._failure = error
                    self._tell()
                return
            with self._changed:
                self._busy = False
                self._tell()

    def _next(self) -> _Task | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue)
            if self._closed:
                return None
            self._busy = True
            task = self._queue.popleft()
            self._tell()  # a place in the queue is free
            return task

    def _publish(self, task: _Task) -> None:
        if task.directory is None:
            self._publish_final(task)
            return
        if task.directory == EVENTS:
            self._publish_events(task)
            return
        location = self._prefix.join(task.directory)
        files = sorted(map(_record_of, task.files), key=lambda file: file.name)
        manifest = Manifest(
            run=self._run, epoch=task.epoch, step=task.step, files=files, validation_loss=task.validation_loss
        )
        manifest = self._make_durable(task, location, manifest)
        LOG.info("Published %s (%d files, %.1f MB)", task.directory, len(files), sum(f.size_bytes for f in files) / 1e6)
        self._follow_up(task, manifest)

    def _publish_final(self, task: _Task) -> None:
        """Give the last epoch's numbered weights, which people may hold already, their second name."""
        path, final = task.files[0], self._prefix.join(final_weights_file(self._name, suffix=task.files[0].suffix))
        ours = _record_of(path)
        numbered = self._prefix.join(checkpoint_directory(task.epoch))
        there = self._store.find(numbered.join(MANIFEST))
        manifest = parse_manifest(there) if there is not None else None
        files = manifest.files if manifest else []
        standing = next((file for file in files if file.name.endswith(WEIGHTS_SUFFIXES)), ours)
        if self._store.has_copy(final, size=standing.size_bytes, sha256=standing.sha256):
            return
        source = numbered.join(standing.name)
        if standing.sha256 != ours.sha256 and self._store.has(source, size=standing.size_bytes):
            self._store.copy(source, final, size=standing.size_bytes, sha256=standing.sha256)
            LOG.info("Copied %s to %s", source, final)
            return
        self._upload(path, final, sha256=ours.sha256)

    def _publish_events(self, task: _Task) -> None:
        """Upload an event file, unless an earlier attempt has: by exact resume it holds the same."""
        path = task.files[0]
        ours, location = _record_of(path), self._prefix.join(EVENTS, path.name)
        if not self._store.has(location):
            self._upload(path, location, sha256=ours.sha256)
            LOG.info("Published %s/%s (%.1f MB)", EVENTS, path.name, ours.size_bytes / 1e6)
        elif not self._store.has(location, size=ours.size_bytes):
            LOG.warning("%s was published by an earlier attempt with other content, which stays", location)
        _remove(task.files)

    def _make_durable(self, task: _Task, location: S3Location, manifest: Manifest) -> Manifest:
        """Return the manifest that stands in the store in the end: ours, or that of an earlier attempt."""
        there = self._store.find(location.join(MANIFEST))
        earlier = parse_manifest(there) if there is not None else None
        if there is not None and (earlier is None or earlier.files != manifest.files):
            if not task.is_state:
                if earlier is None:
                    raise _unreadable(location)
                # Some GPUs do not repeat themselves bit by bit. The first one is in people's hands already.
                LOG.warning("%s was published by an earlier attempt with other content, which stays", location)
                return earlier
            self._store.delete([location.join(MANIFEST)])
            earlier = None
        for path, file in zip(sorted(task.files, key=lambda path: path.name), manifest.files, strict=True):
            if earlier is None or not self._store.has(location.join(path.name), size=file.size_bytes):
                self._upload(path, location.join(path.name))
        if earlier is None:
            self._store.create(location.join(MANIFEST), encoded(manifest))
        return manifest

    def _upload(self, path: Path, location: S3Location, *, sha256: str | None = None) -> None:
        self._store.upload(path, location, sha256=sha256)
        self._reporter.uploaded(path.stat().st_size)

    def _follow_up(self, task: _Task, manifest: Manifest) -> None:
        assert task.directory is not None
        kind = task.directory.partition("/")[0]
        if kind == "checkpoints":
            self._record(manifest)
            _remove([path for path in self._kept_locally if path not in task.files])
            self._kept_locally = task.files
            return
        if kind == "samples":
            self._count_samples(manifest)
        elif kind == "state":
            self._reporter.state_saved()
            self._store.delete(superseded(self._store.list(self._prefix.join("state")), self._prefix, task.directory))
        _remove(task.files)

    def _record(self, manifest: Manifest) -> None:
        record = checkpoint_record(manifest, num_samples=self._samples.get(manifest.epoch, 0))
        if record is None:
            raise RunError(
                FailureReason.INTERNAL_ERROR, f"{checkpoint_directory(manifest.epoch)} was published without weights"
            )
        self._reporter.checkpointed(record, fresh=True)
        self._write_index()

    def _count_samples(self, manifest: Manifest) -> None:
        number = self._samples[manifest.epoch] = count_pictures(manifest)
        for record in self._reporter.records():
            if record.epoch == manifest.epoch and record.num_samples != number:
                self._reporter.checkpointed(record.model_copy(update={"num_samples": number}))
                self._write_index()

    def _write_index(self) -> None:
        index = Index(
            run=self._run,
            name=self._name,
            plan=self._reporter.plan,
            checkpoints=self._reporter.records(),
            validations=[ValidationRecord(epoch=at, loss=loss) for at, loss in self._reporter.validations().items()],
            best_epoch=self._reporter.best_epoch,
            updated=datetime.now(UTC),
        )
        self._store.replace(self._prefix.join(INDEX), index.model_dump_json(by_alias=True, indent=1).encode())


def encoded(manifest: Manifest) -> bytes:
    """Return a manifest's one representation: the same content is the same bytes."""
    return manifest.model_dump_json(by_alias=True, exclude_none=True).encode()


def _unreadable(location: S3Location) -> RunError:
    return RunError(
        FailureReason.INTERNAL_ERROR,
        f"{location.join(MANIFEST)} is there but cannot be read: it is damaged or of another version of Darkroom",
        advice=f"Move everything below {location} away and let the run go on, or go on with the version that wrote it.",
    )


def _record_of(path: Path) -> FileRecord:
    return FileRecord(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)
