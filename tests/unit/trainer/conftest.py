"""The tiny base model, loaded once for the session; each test that changes it takes a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from darkroom_trainer.families.model import StableDiffusion
    from tests.unit.trainer.sessions import Maker


@pytest.fixture(scope="session")
def base_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a checkpoint of a family's topology in one file, once."""
    from tests.builders.models import write_tiny

    folder = tmp_path_factory.mktemp("base")

    def write(family: str) -> Path:
        path = folder / f"tiny-{family}.safetensors"
        return path if path.exists() else write_tiny(path, family)

    return write


@pytest.fixture(scope="session")
def base_file(base_files: Callable[[str], Path]) -> Path:
    """A checkpoint of SD 1.5's topology in one file."""
    return base_files("SD15")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compare bits: sums depend on how many threads share them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def load_model(base_files: Callable[[str], Path], one_thread: None) -> Callable[..., StableDiffusion]:
    """Load a tiny model afresh: SD 1.5 in fp32 unless told otherwise."""
    import torch

    from darkroom_trainer.families.loading import load_path

    def load(dtype: torch.dtype = torch.float32, *, family: str = "SD15") -> StableDiffusion:
        return load_path(base_files(family), dtype=dtype, device=torch.device("cpu"))

    return load


@pytest.fixture
def make(load_model: Callable[..., StableDiffusion], tmp_path: Path) -> Iterator[Maker]:
    """Open sessions on the same pictures."""
    import torch

    from tests.unit.trainer.sessions import Maker

    yield Maker(load_model, tmp_path)
    torch.use_deterministic_algorithms(mode=False)
