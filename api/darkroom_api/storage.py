"""Where objects live and with which identity: the storage block that every kind shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from darkroom_api.base import Model
from darkroom_api.uris import S3_PATTERN, parse_s3


def _is_location(uri: str) -> str:
    parse_s3(uri)
    return uri


S3Uri = Annotated[str, Field(pattern=S3_PATTERN, max_length=1024), AfterValidator(_is_location)]
"""An ``s3://bucket/key`` address."""

DNS_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"


class Credentials(Model):
    """A Secret of this namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps AWS_SESSION_TOKEN."""

    secret_name: str = Field(
        min_length=1, max_length=253, pattern=DNS_NAME, description="Name of the Secret, in this namespace."
    )


class CABundle(Model):
    """A ConfigMap key that holds the PEM certificates of a private certificate authority."""

    config_map_name: str = Field(
        min_length=1, max_length=253, pattern=DNS_NAME, description="Name of the ConfigMap, in this namespace."
    )
    key: str = Field(default="ca.crt", min_length=1, max_length=253, description="Key in the ConfigMap.")


class Storage(Model):
    """The S3-compatible store that every s3:// address of the spec means."""

    endpoint_url: str | None = Field(
        default=None,
        alias="endpointURL",
        max_length=2048,
        pattern=r"^https?://[^\s/]+/?$",
        description="Address of the S3 API, such as https://s3.example.com. Default: AWS.",
    )
    region: str = Field(
        default="us-east-1", min_length=1, max_length=63, description="Region name for request signatures."
    )
    credentials: Credentials | None = Field(
        default=None, description="Keys of the store. Default: the identity of compute.serviceAccountName."
    )
    ca_bundle: CABundle | None = Field(
        default=None, description="Certificates to trust for the endpoint besides the usual ones."
    )
