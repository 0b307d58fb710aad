"""A bucket with a base model and pictures for whole runs of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.pictures import write_pictures
from tests.builders.s3_proxy import S3Proxy, s3_proxy
from tests.integration.conftest import Store
from tests.integration.trainer.trainer_runs import Bench


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in one file."""
    from tests.builders.models import write_tiny_sd15

    return write_tiny_sd15(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(scope="module")
def bench(s3: Store, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bucket with good inputs."""
    directory = tmp_path_factory.mktemp("bench")
    made = Bench(s3, s3.bucket(), directory)
    made.upload(base_model, "base.safetensors")
    made.upload(write_pictures(directory / "pictures"), "pictures")
    return made


@pytest.fixture
def disturbed(bench: Bench, tmp_path: Path) -> Bench:
    """The same inputs in a bucket of its own."""
    made = Bench(bench.store, bench.store.bucket(), tmp_path)
    client = bench.store.client()
    for key in ("base.safetensors", "pictures"):
        for item in client.list_objects_v2(Bucket=bench.bucket, Prefix=key)["Contents"]:
            source = {"Bucket": bench.bucket, "Key": item["Key"]}
            client.copy_object(Bucket=made.bucket, Key=item["Key"], CopySource=source)
    return made


@pytest.fixture
def proxy(bench: Bench) -> Iterator[S3Proxy]:
    with s3_proxy(bench.store.endpoint_url) as running:
        yield running
