"""Opens the store of a spec: address, credentials and certificates, from the spec and the environment."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import boto3
import botocore.httpsession
from botocore.config import Config

from darkroom_api.failures import FailureReason
from darkroom_api.storage import Storage
from darkroom_trainer.errors import RunError
from darkroom_trainer.patience import Patience
from darkroom_trainer.store import Store


def open_store(storage: Storage, environ: Mapping[str, str], *, patience: Patience | None = None) -> Store:
    """Return the store of a spec with the credentials of the environment; nothing is asked of it yet.

    Without keys in the environment boto3 looks for a cloud identity of the pod's ServiceAccount.

    Raises:
        RunError: A Secret is named, but its keys did not arrive.
    """
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if storage.credentials and not (key and secret):
        lacking = " and ".join(name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if not environ.get(name))
        raise RunError(
            FailureReason.ACCESS_DENIED,
            f"spec.storage.credentials: Secret {storage.credentials.secret_name!r} has no value for {lacking}",
        )
    session = boto3.session.Session(
        aws_access_key_id=key or None,
        aws_secret_access_key=secret or None,
        aws_session_token=environ.get("AWS_SESSION_TOKEN") or None,
        region_name=storage.region,
    )
    client = session.client(
        "s3",
        endpoint_url=storage.endpoint_url,
        config=client_config(),
        verify=trusted_certificates(environ),
    )
    return Store(client, patience=patience or Patience())


def client_config() -> Config:
    """Return how requests are made: few quick tries each, since `Patience` does the waiting."""
    return Config(
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 2},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=24,
        user_agent_extra="darkroom",
    )


def trusted_certificates(environ: Mapping[str, str]) -> str | None:
    """Return the file of certificates to trust, or None for botocore's own.

    botocore takes a bundle instead of the usual authorities, the spec promises it besides them: so both are joined.

    Raises:
        RunError: ``AWS_CA_BUNDLE`` names no readable file.
    """
    given = environ.get("AWS_CA_BUNDLE")
    if not given:
        return None
    try:
        added = Path(given).read_bytes()
    except OSError as error:
        raise RunError(
            FailureReason.INVALID_SPEC, f"spec.storage.caBundle: {given!r} cannot be read ({error.strerror})"
        ) from error
    usual = Path(botocore.httpsession.get_cert_path(True) or "").read_bytes()
    with tempfile.NamedTemporaryFile(prefix="ca-", suffix=".pem", delete=False) as file:
        file.write(usual + b"\n" + added)
    return file.name
