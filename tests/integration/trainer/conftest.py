"""A bucket with a base model and pictures for whole runs of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.pictures import write_pictures
from tests.integration.conftest import Store
from tests.integration.trainer.trainer_runs import Bench


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in one file."""
    from tests.builders.sd15 import write_tiny_sd15

    return write_tiny_sd15(tmp_path_factory.mktemp("base") / "base.safetensors")


@pytest.fixture(scope="module")
def bench(s3: Store, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bucket with good inputs."""
    directory = tmp_path_factory.mktemp("bench")
    made = Bench(s3, s3.bucket(), directory)
    made.upload(base_model, "base.safetensors")
    made.upload(write_pictures(directory / "pictures"), "pictures")
    return made
