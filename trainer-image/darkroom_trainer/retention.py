"""Which resume states may go: pure decisions over a listing.

Two are kept, so that one survives whatever happens to the other. Manifests go first, mirroring the order of writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from darkroom_api.layout import MANIFEST
from darkroom_api.uris import S3Location
from darkroom_trainer.store import StoredObject

KEPT_STATES: Final = 2


def superseded(objects: Sequence[StoredObject], prefix: S3Location, newest: str) -> list[S3Location]:
    """Return what to delete, in that order, now that a state is durable.

    Kept are this state and the one before it that has a manifest. States of later steps go as well: the run would
    have resumed from them if they had verified.

    Args:
        objects: Everything below ``state/``.
        prefix: The run's prefix.
        newest: The directory that was just published, such as ``state/step-00000840``.
    """
    root = prefix.join("state").key
    directories: dict[str, list[str]] = {}
    for found in objects:
        name = found.key[len(root) + 1 :].partition("/")[0]
        directories.setdefault(f"state/{name}", []).append(found.key)
    complete = [name for name, keys in directories.items() if any(key.endswith(f"/{MANIFEST}") for key in keys)]
    earlier = sorted(name for name in complete if name < newest)  # numbers have leading zeros
    kept = {newest, *earlier[-(KEPT_STATES - 1) :]}
    doomed = [key for name, keys in directories.items() if name not in kept for key in keys]
    doomed.sort(key=lambda key: not key.endswith(f"/{MANIFEST}"))
    return [S3Location(prefix.bucket, key) for key in doomed]
