"""The tiny base model, loaded once for the session; each test that changes it takes a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from darkroom_trainer.families.sd15 import StableDiffusion
    from tests.unit.trainer.sessions import Maker


@pytest.fixture(scope="session")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of SD 1.5's topology in one file."""
    from tests.builders.sd15 import write_tiny_sd15

    return write_tiny_sd15(tmp_path_factory.mktemp("base") / "tiny.safetensors")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compare bits: sums depend on how many threads share them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def load_model(base_file: Path, one_thread: None) -> Callable[..., StableDiffusion]:
    """Load the tiny model afresh, in fp32 unless told otherwise."""
    import torch

    from darkroom_trainer.families import sd15
    from darkroom_trainer.safetensors_file import read_header

    def load(dtype: torch.dtype = torch.float32) -> StableDiffusion:
        return sd15.load(base_file, read_header(base_file), dtype=dtype, device=torch.device("cpu"))

    return load


@pytest.fixture
def make(load_model: Callable[..., StableDiffusion], tmp_path: Path) -> Iterator[Maker]:
    """Open sessions on the same pictures."""
    import torch

    from tests.unit.trainer.sessions import Maker

    yield Maker(load_model, tmp_path)
    torch.use_deterministic_algorithms(mode=False)
