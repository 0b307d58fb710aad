"""Brings a run's inputs onto the scratch volume: the base model and the pictures.

What the names mean (repeats, captions, families) is for others to judge; here a name is only made safe.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from darkroom_api.failures import FailureReason
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.model_training import ModelTrainingSpec
from darkroom_api.networks import InitialWeights
from darkroom_api.regularization import Regularization
from darkroom_api.training import BaseModelSource, TrainingSpec
from darkroom_api.uris import S3Location, check_key, parse_s3
from darkroom_trainer.diffusers_folder import INDEX, classes_of, wanted_files
from darkroom_trainer.errors import RunError
from darkroom_trainer.safetensors_file import BASE_MODEL
from darkroom_trainer.store import ChecksumError, Store, StoredObject
from darkroom_trainer.transferring import SPARE_DISK_BYTES, OnProgress, free_bytes

MAXIMUM_FILES: Final = 500_000
"""A dataset prefix with more objects is taken for a mistake, such as a bucket's root."""
MAXIMUM_FILE_BYTES: Final = 2**30
"""The largest photo formats stay below this; a longer object in a dataset is a mistake too."""
_PARALLEL: Final = 8
_FIRST_OBJECTS: Final = 1000
"""One page of a listing."""


DATASET: Final = "spec.dataset.uri"
VALIDATION_DATASET: Final = "spec.validation.dataset.uri"
REGULARIZATION: Final = "spec.regularization.uri"
INITIAL_WEIGHTS: Final = "spec.network.initialWeights.uri"


def regularization_of(spec: TrainingSpec) -> Regularization | None:
    """Return what a spec says of its class; an embedding, which changes no weight of the model, forgets nothing."""
    return spec.regularization if isinstance(spec, (LoraTrainingSpec, ModelTrainingSpec)) else None


def datasets(spec: TrainingSpec) -> dict[str, S3Location]:
    """Return the prefixes of pictures that a spec names, by their fields."""
    regularization = regularization_of(spec)
    uris = {
        DATASET: spec.dataset.uri,
        REGULARIZATION: regularization.uri if regularization else None,
        VALIDATION_DATASET: spec.validation.dataset.uri if spec.validation and spec.validation.dataset else None,
    }
    return {field: parse_s3(uri) for field, uri in uris.items() if uri is not None}


def initial_weights(spec: TrainingSpec) -> InitialWeights | None:
    """Return the file of weights that training begins with, if the spec names one."""
    return spec.network.initial_weights if isinstance(spec, LoraTrainingSpec) else None


def check_inputs(
    store: Store,
    model: BaseModelSource,
    prefixes: Mapping[str, S3Location],
    *,
    initial: InitialWeights | None = None,
) -> None:
    """Look whether single files and a first object of each dataset are there, in small requests.

    Fetching finds that too, but only after torch is loaded: on a busy node most of a minute.

    Raises:
        RunError: What fetching would raise for it.
    """
    if initial is not None:
        try:
            store.size(_object(initial.uri, INITIAL_WEIGHTS))
        except RunError as error:
            raise _at(INITIAL_WEIGHTS, error) from error
    location = _object(model.uri, BASE_MODEL)
    try:
        if model.is_folder:
            _folder_files(store, location)
        else:
            store.size(location)
    except RunError as error:
        raise _at("spec.baseModel.uri", error) from error
    for field, prefix in prefixes.items():
        try:
            first = store.list(prefix, at_most=_FIRST_OBJECTS)
            if len(first) < _FIRST_OBJECTS:
                _check_any(_files(first), prefix)
        except RunError as error:
            raise _at(field, error) from error


def _object(uri: str, field: str) -> S3Location:
    location = parse_s3(uri)
    if not location.key:
        raise RunError(FailureReason.INVALID_SPEC, f"{field}: {uri!r} names a bucket; give s3://BUCKET/KEY")
    return location


def _files(objects: Sequence[StoredObject]) -> list[StoredObject]:
    return [found for found in objects if not found.key.endswith("/")]


def _at(path: str, error: RunError) -> RunError:
    return RunError(error.reason, f"{path}: {error.message}", advice=error.advice)


def fetch_base_model(
    store: Store, source: BaseModelSource, directory: Path, *, on_progress: OnProgress | None = None
) -> Path:
    """Download the base model and return its path: a file, or a folder with what is needed of it.

    Raises:
        RunError: There is no such object, or it is not the file whose SHA-256 the spec gives.
    """
    location = _object(source.uri, BASE_MODEL)
    if not source.is_folder:
        return _fetch_file(store, source, directory, field=BASE_MODEL, on_progress=on_progress)
    path = directory / location.key.rpartition("/")[2]
    try:
        files = _folder_files(store, location)
        check_room(files, location, free=free_bytes(path))
        _download_all(store, location, files, directory=path, on_progress=on_progress)
    except RunError as error:
        raise _at(BASE_MODEL, error) from error
    return path


def fetch_initial_weights(
    store: Store, source: InitialWeights, directory: Path, *, on_progress: OnProgress | None = None
) -> Path:
    """Download the weights that training begins with and return the file's path.

    Raises:
        RunError: There is no such object, or it is not the file whose SHA-256 the spec gives.
    """
    return _fetch_file(store, source, directory, field=INITIAL_WEIGHTS, on_progress=on_progress)


def _fetch_file(
    store: Store,
    source: BaseModelSource | InitialWeights,
    directory: Path,
    *,
    field: str,
    on_progress: OnProgress | None,
) -> Path:
    location, its = _object(source.uri, field), field.removesuffix(".uri")
    path = directory / location.key.rpartition("/")[2]
    try:
        store.download(location, path, sha256=source.sha256, on_progress=on_progress)
    except ChecksumError as error:
        name = its.removeprefix("spec.")
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"{its}.sha256: {error.expected} is given, but {location} has {error.got}",
            advice=f"Correct {name}.sha256, or put the file it belongs to at {name}.uri.",
        ) from error
    except RunError as error:
        raise _at(field, error) from error
    return path


def _folder_files(store: Store, location: S3Location) -> dict[str, int]:
    """Return the files of a diffusers folder that a run needs, with their sizes."""
    skip = len(location.key) + 1
    there = {found.key[skip:]: found.size for found in _files(store.list(location, at_most=MAXIMUM_FILES))}
    if INDEX not in there:
        raise RunError(
            FailureReason.NOT_FOUND,
            f"{location}/: there is no {INDEX} below this prefix",
            advice="Correct baseModel.uri: a folder in diffusers' layout ends in / and holds that file; a single file "
            "does not end in /.",
        )
    try:
        return {name: there[name] for name in wanted_files(there, classes_of(store.read(location.join(INDEX))))}
    except RunError as error:
        raise _at(f"{location}/", error) from error


def check_room(files: Mapping[str, int], location: S3Location, *, free: int) -> None:
    """Refuse a folder of which no file can be made: there must be room for both.

    Args:
        files: What is needed of it, with sizes.
        location: The folder.
        free: Bytes that the scratch volume has left.

    Raises:
        RunError: There is less.
    """
    if (needed := 2 * sum(files.values()) + SPARE_DISK_BYTES) > free:
        raise RunError(
            FailureReason.INTERNAL_ERROR,
            f"{location}/: {needed} bytes are needed to make one file of it, but only {free} are free on the pod's "
            "scratch volume",
            advice="Raise compute.scratchSize, or give the node more disk.",
        )


def fetch_dataset(
    store: Store,
    location: S3Location,
    directory: Path,
    *,
    field: str = DATASET,
    on_progress: OnProgress | None = None,
) -> Path:
    """Mirror everything below a prefix, which a field of the spec names, into a directory and return the directory.

    Raises:
        RunError: There is nothing, or names or sizes are such that a mirror would be wrong.
    """
    try:
        files = check_files(_files(store.list(location)), location, free=free_bytes(directory))
        _download_all(store, location, files, directory=directory, on_progress=on_progress)
    except RunError as error:
        raise _at(field, error) from error
    return directory


def check_files(objects: Sequence[StoredObject], location: S3Location, *, free: int) -> dict[str, int]:
    """Return names below the prefix and sizes, if they can be files of one directory.

    Args:
        objects: What the prefix holds, directory markers left out.
        location: The prefix.
        free: Bytes that the scratch volume has left.

    Raises:
        RunError: Why they cannot.
    """
    _check_any(objects, location)
    if len(objects) > MAXIMUM_FILES:
        raise _rejected(f"{location}: {len(objects)} objects; at most {MAXIMUM_FILES} are allowed")
    skip = len(location.key) + 1 if location.key else 0
    files = {found.key[skip:]: found.size for found in objects}
    _check_names(files, location)
    for name, size in files.items():
        if size > MAXIMUM_FILE_BYTES:
            raise _rejected(f"{location.join(name)}: {size} bytes; at most {MAXIMUM_FILE_BYTES} are allowed")
    if (total := sum(files.values())) + SPARE_DISK_BYTES > free:
        raise RunError(
            FailureReason.DATASET_REJECTED,
            f"{location}: {total} bytes, but only {free} are free on the pod's scratch volume",
            advice="Raise compute.scratchSize, or point dataset.uri at the pictures alone.",
        )
    return files


def _check_any(objects: Sequence[StoredObject], location: S3Location) -> None:
    if not objects:
        raise RunError(
            FailureReason.NOT_FOUND,
            f"{location}: there is no object below this prefix",
            advice="Put folders named 'REPEATS_TRIGGER CLASS' with pictures below dataset.uri, or correct it.",
        )


def _check_names(names: dict[str, int], location: S3Location) -> None:
    seen: dict[str, str] = {}
    folders = {name[:end] for name in names for end, character in enumerate(name) if character == "/"}
    for name in names:
        try:
            check_key(name)
        except ValueError as error:
            raise _rejected(f"{location}: {error}") from error
        if any(part in {"", "."} for part in name.split("/")):
            raise _rejected(f"{location}: object key {name!r} is not allowed: a part between slashes is empty or '.'")
        if name in folders:
            raise _rejected(f"{location}: {name!r} is both an object and the folder of others")
        # Twins would be one file on a disk that folds case or composes accents: a caption of the wrong picture.
        folded = unicodedata.normalize("NFC", name).casefold()
        if (twin := seen.setdefault(folded, name)) != name:
            raise _rejected(f"{location}: {twin!r} and {name!r} differ only in case or accents' encoding")


def _rejected(message: str) -> RunError:
    return RunError(
        FailureReason.DATASET_REJECTED, message, advice="Rename or remove the objects named in the message."
    )


class _Sum:
    """Adds the progress of many files up to one."""

    def __init__(self, files: dict[str, int], on_progress: OnProgress | None) -> None:
        self._total, self._on_progress = sum(files.values()), on_progress
        self._done: dict[str, int] = {}
        self._sum = 0
        self._lock = threading.Lock()

    def of(self, name: str) -> OnProgress:
        def progressed(done: int, _total: int) -> None:
            with self._lock:
                self._sum += done - self._done.get(name, 0)
                self._done[name] = done
                reached = self._sum
            if self._on_progress:
                self._on_progress(reached, self._total)

        return progressed


def _download_all(
    store: Store, location: S3Location, files: dict[str, int], *, directory: Path, on_progress: OnProgress | None
) -> None:
    progress = _Sum(files, on_progress)
    with ThreadPoolExecutor(_PARALLEL, "fetch") as pool:
        futures = [
            pool.submit(store.download, location.join(name), directory / name, size=size, on_progress=progress.of(name))
            for name, size in files.items()
        ]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
