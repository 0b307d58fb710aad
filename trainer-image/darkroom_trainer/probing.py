"""Asks the store for everything a run will need, before a minute of GPU time is spent; and tidies up."""

from __future__ import annotations

import logging
import secrets
from typing import Final

from darkroom_api.failures import FailureReason
from darkroom_api.uris import S3Location
from darkroom_trainer.errors import RunError
from darkroom_trainer.store import Store

LOG: Final = logging.getLogger(__name__)


def probe(store: Store, prefix: S3Location) -> None:
    """Write, read back, create twice and delete a small object below the prefix.

    A store that lets the second creation through ignores ``If-None-Match``. The run goes on then, looking before
    each creation: enough, since a run never has two pods at once.

    From then on the store is known to speak S3 (see `Store.is_proven`).

    Raises:
        RunError: The bucket does not exist, the credentials do not suffice or the store stays away.
    """
    at = prefix.join(f".probe-{secrets.token_hex(8)}")
    first, second = secrets.token_bytes(64), secrets.token_bytes(64)
    try:
        store.create(at, first)
        _check_content(store, at, first)
        _check_conditions(store, at, second)
        store.delete([at])
        store.is_proven = True
    except RunError as error:
        raise RunError(error.reason, f"spec.output.uri: {error.message}", advice=error.advice) from error


def _check_content(store: Store, at: S3Location, data: bytes) -> None:
    if store.read(at) != data:
        raise RunError(
            FailureReason.STORAGE_UNAVAILABLE,
            f"{at}: what was written is not what is read back",
            advice="Check what stands between the pod and the store at storage.endpointURL.",
        )


def _check_conditions(store: Store, at: S3Location, data: bytes) -> None:
    try:
        store.create(at, data)
    except RunError as error:
        if error.reason is FailureReason.INTERNAL_ERROR:  # refused to overwrite, as it should
            return
        raise
    store.honours_conditions = False
    LOG.warning("The store at %s ignores If-None-Match: darkroom looks before it writes instead.", store.endpoint)


def abandon_orphans(store: Store, prefix: S3Location) -> None:
    """Give up the uploads that killed attempts left unfinished; where that is not allowed, say so and go on."""
    try:
        orphans = store.abort_uploads(prefix)
    except RunError as error:
        if error.reason not in {FailureReason.ACCESS_DENIED, FailureReason.INTERNAL_ERROR}:
            raise
        # Only parts that nobody can see are left; a lifecycle rule of the bucket can sweep them as well.
        LOG.warning("Unfinished uploads of earlier attempts stay: %s", error.message)
        return
    if orphans:
        LOG.info("Gave up %d unfinished uploads of an earlier attempt", orphans)
