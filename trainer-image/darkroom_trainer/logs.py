"""The pod's log: one line per event on standard error, in UTC, without secrets."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, TextIO

_SECRETS: Final = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "WANDB_API_KEY",
)
_TALKATIVE: Final = ("botocore", "boto3", "s3transfer", "urllib3", "PIL", "diffusers", "transformers", "wandb")


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """Return the values of the environment that no line and no message may show."""
    return [value for name in _SECRETS if len(value := environ.get(name, "")) >= 8]


def scrub(text: str, secrets: Sequence[str]) -> str:
    """Return the text with every secret blotted out."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class _Lines(logging.Formatter):
    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record), self._secrets)


def configure(environ: Mapping[str, str], stream: TextIO | None = None) -> None:
    """Send every record to one stream; libraries speak up only to warn."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Lines(secrets_of(environ)))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
