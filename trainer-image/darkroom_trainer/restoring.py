"""Finds out what earlier attempts of a run have finished, and brings the newest good state back.

Only a directory whose manifest is there exists; a state counts only if every file has the size and SHA-256 that the
manifest gives. The writer is `publishing`.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from darkroom_api.failures import FailureReason
from darkroom_api.layout import MANIFEST
from darkroom_api.objects import FileRecord, Manifest
from darkroom_api.progress import CheckpointRecord
from darkroom_api.uris import S3Location, check_key
from darkroom_trainer.errors import RunError
from darkroom_trainer.store import ChecksumError, Store, StoredObject

LOG: Final = logging.getLogger(__name__)
_PARALLEL: Final = 8
_DIRECTORY: Final = re.compile(r"(?P<kind>checkpoints|samples|state)/(?:epoch|step)-(?P<number>[0-9]{6,12})")
WEIGHTS_SUFFIXES: Final = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Restored:
    """What earlier attempts left."""

    state_directory: Path | None = None
    """The newest state that verified, on the local disk; None starts from the beginning."""
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    """Oldest first."""


def restore(store: Store, prefix: S3Location, directory: Path) -> Restored:
    """Return what lies below a run's prefix, with the newest good state downloaded below a local directory."""
    objects = store.list(prefix)
    manifests = read_manifests(store, prefix, objects)
    sizes = {found.key: found.size for found in objects}
    states = sorted((name for name in manifests if name.startswith("state/")), key=_number, reverse=True)
    restored: Path | None = None
    for name in states:
        if _fetch_state(store, prefix.join(name), manifests[name], sizes=sizes, directory=directory / name):
            restored = directory / name
            break
    samples = {_number(name): count_pictures(it) for name, it in manifests.items() if name.startswith("samples/")}
    records = (
        checkpoint_record(manifest, num_samples=samples.get(manifest.epoch, 0))
        for name, manifest in manifests.items()
        if name.startswith("checkpoints/")
    )
    checkpoints = sorted((record for record in records if record), key=lambda record: record.epoch)
    return Restored(restored, checkpoints)


def read_manifests(store: Store, prefix: S3Location, objects: Iterable[StoredObject]) -> dict[str, Manifest]:
    """Return every manifest that can be read, by the directory it vouches for."""
    skip = len(prefix.key) + 1 if prefix.key else 0
    names = [found.key[skip:].removesuffix(f"/{MANIFEST}") for found in objects if found.key.endswith(f"/{MANIFEST}")]
    names = [name for name in names if _DIRECTORY.fullmatch(name)]
    with ThreadPoolExecutor(_PARALLEL, "restore") as pool:
        texts = pool.map(lambda name: store.read(prefix.join(name, MANIFEST)), names)
        parsed = {name: parse_manifest(text) for name, text in zip(names, texts, strict=True)}
    for name in (name for name, manifest in parsed.items() if manifest is None):
        LOG.warning("%s: its manifest cannot be read; the directory is ignored", prefix.join(name))
    return {name: manifest for name, manifest in parsed.items() if manifest}


def checkpoint_record(manifest: Manifest, *, num_samples: int) -> CheckpointRecord | None:
    """Return the record of a checkpoint's directory; None if its manifest names no weights."""
    weights = next((file for file in manifest.files if file.name.endswith(WEIGHTS_SUFFIXES)), None)
    if weights is None:
        return None
    return CheckpointRecord(
        epoch=manifest.epoch,
        step=manifest.step,
        sha256=weights.sha256,
        size_bytes=weights.size_bytes,
        num_samples=num_samples,
        validation_loss=manifest.validation_loss,
    )


def count_pictures(manifest: Manifest) -> int:
    """Return how many sample pictures a manifest names."""
    return sum(file.name.endswith(".png") for file in manifest.files)


def _number(name: str) -> int:
    match = _DIRECTORY.fullmatch(name)
    assert match, name
    return int(match["number"])


def parse_manifest(text: bytes) -> Manifest | None:
    """Return a manifest; None if it is damaged, leaves its directory or is of a version that is not ours."""
    try:
        manifest = Manifest.model_validate_json(text)
        for file in manifest.files:
            if "/" in check_key(file.name):
                raise ValueError(f"file name {file.name!r} holds a slash")  # noqa: TRY301 - same end as a bad key
    except (ValidationError, ValueError):
        return None
    return manifest


def _fetch_state(
    store: Store, location: S3Location, manifest: Manifest, *, sizes: dict[str, int], directory: Path
) -> bool:
    if bad := _wrong_size(manifest.files, location, sizes):
        LOG.warning("%s: %s is not as its manifest says; trying an older state", location, bad)
        return False
    try:
        for file in manifest.files:
            store.download(location.join(file.name), directory / file.name, size=file.size_bytes, sha256=file.sha256)
    except (ChecksumError, RunError) as error:
        if isinstance(error, RunError) and error.reason is not FailureReason.NOT_FOUND:
            raise
        LOG.warning("%s; trying an older state", error)
        shutil.rmtree(directory, ignore_errors=True)
        return False
    return True


def _wrong_size(files: Iterable[FileRecord], location: S3Location, sizes: dict[str, int]) -> str | None:
    return next((file.name for file in files if sizes.get(location.join(file.name).key) != file.size_bytes), None)
