"""What the tests of the trainer's I/O share: a store that waits briefly, a plan, and a proxy in front of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.plan import RunPlan
from darkroom_api.storage import Storage
from darkroom_api.uris import S3Location
from darkroom_trainer.connecting import open_store
from darkroom_trainer.patience import Patience
from darkroom_trainer.store import Store
from tests.builders.s3_proxy import S3Proxy, s3_proxy

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from tests.integration.conftest import Store as Server

RUN = "0123456789"


def brief(
    *, total: float = 60.0, check: Callable[[], None] = lambda: None, on_away: Callable[[str], None] = lambda _: None
) -> Patience:
    """Return a patience that tries often, so that tests need not wait long."""
    return Patience(total_seconds=total, first_seconds=0.05, longest_seconds=0.3, check=check, on_away=on_away)


def connect(server: Server, *, url: str | None = None, patience: Patience | None = None) -> Store:
    """Return the trainer's own store for a server, perhaps through a proxy."""
    storage = Storage(endpoint_url=url or server.endpoint_url)
    return open_store(storage, server.environment(), patience=patience or brief())


def run_plan(bucket: str, endpoint_url: str | None = None) -> RunPlan:
    """Return a plan whose output lies in a bucket."""
    spec = LoraTrainingSpec.model_validate(
        {
            "baseModel": {"uri": f"s3://{bucket}/models/tiny.safetensors"},
            "dataset": {"uri": f"s3://{bucket}/data"},
            "output": {"uri": f"s3://{bucket}/loras"},
            "storage": {"endpointURL": endpoint_url, "credentials": {"secretName": "studio-s3"}},
            "compute": {"gpus": 0},
        }
    )
    return RunPlan(kind="LoraTraining", name="anna", namespace="studio", uid="u", run=RUN, spec=spec)


@dataclass(frozen=True)
class Place:
    """A fresh bucket and everything needed to look into it."""

    server: Server
    bucket: str

    @property
    def client(self) -> S3Client:
        return self.server.client()

    @property
    def prefix(self) -> S3Location:
        return run_plan(self.bucket).prefix

    def at(self, key: str) -> S3Location:
        return S3Location(self.bucket, key)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def keys(self, prefix: str = "") -> list[str]:
        """Return all keys below the run's prefix, without that prefix."""
        root = f"{self.prefix.key}/{prefix}"
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=root)
        return [item["Key"].removeprefix(f"{self.prefix.key}/") for item in found.get("Contents", [])]

    def unfinished(self) -> int:
        """Return how many multipart uploads are neither complete nor aborted."""
        return len(self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))


@pytest.fixture
def place(s3: Server) -> Place:
    return Place(s3, s3.bucket())


@pytest.fixture
def store(s3: Server) -> Store:
    return connect(s3)


@pytest.fixture
def proxy(s3: Server) -> Iterator[S3Proxy]:
    with s3_proxy(s3.endpoint_url, credentials=s3.environment()) as running:
        yield running


@pytest.fixture
def proxied(s3: Server, proxy: S3Proxy) -> Store:
    """The store through the proxy."""
    return connect(s3, url=proxy.url)
