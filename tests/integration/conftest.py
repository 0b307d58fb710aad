"""Real servers for the integration tests: an API server with its controllers, and an S3 store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config

from dev.cluster.control_plane import ControlPlane
from dev.cluster.storage import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager of their own, for the whole session."""
    with ControlPlane() as running:
        yield running


@pytest.fixture(scope="session")
def kubeconfig(control_plane: ControlPlane) -> Path:
    """An administrator's kubeconfig for the session's control plane."""
    return control_plane.kubeconfig


class Store:
    """The session's S3 server as a test sees it."""

    def __init__(self, server: ObjectStore) -> None:
        self.server = server
        self.endpoint_url = server.endpoint.url
        self.access_key = server.endpoint.access_key
        self.secret_key = server.endpoint.secret_key
        self.region = server.endpoint.region

    def environment(self) -> dict[str, str]:
        """The variables boto3 and the trainer's pod understand."""
        return self.server.endpoint.environment()

    def client(self) -> S3Client:
        """A boto3 client with the settings the project uses everywhere."""
        config = Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=config,
        )

    def bucket(self) -> str:
        """Make a bucket that nobody else uses and return its name."""
        name = f"test-{secrets.token_hex(5)}"
        self.client().create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3() -> Iterator[Store]:
    """An S3 server with credentials on a free loopback port, for the whole session."""
    with ObjectStore() as server:
        yield Store(server)


@pytest.fixture
def own_s3() -> Iterator[Store]:
    """An S3 server for one test, which may stop and start it (`own_s3.server`)."""
    with ObjectStore() as server:
        yield Store(server)
