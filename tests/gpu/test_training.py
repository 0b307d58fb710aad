"""On an accelerator: the trainer learns in every precision, repeats itself bit for bit, and says what memory lacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from darkroom_api.failures import FailureReason
from darkroom_trainer import sampling
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.loading import load_path
from darkroom_trainer.hardware import memory_limit
from tests.gpu.conftest import Make, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]


@pytest.mark.parametrize("precision", ["FP32", "BF16", "FP16"])
def test_it_learns_and_stays_finite(make: Make, precision: str) -> None:
    session = make(precision=precision)
    before = weights(session)
    while session.position.step < session.course.total_steps:
        session.step()
    assert any(not torch.equal(one, other) for one, other in zip(before, weights(session), strict=True))
    assert all(it.isfinite().all() for it in weights(session))


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [(precision, "AdamW") for precision in ("FP32", "BF16", "FP16")]
    + [("BF16", kind) for kind in ("AdamW8bit", "Lion", "Adafactor", "CAME", "Prodigy", "DAdaptAdam")]
    + [("BF16", "ScheduleFreeAdamW")],
)
def test_a_stopped_run_goes_on_bit_for_bit(make: Make, tmp_path: Path, precision: str, optimizer: str) -> None:
    straight, first, second = (make(precision=precision, optimizer={"type": optimizer}) for _ in range(3))
    while straight.position.step < straight.course.total_steps:
        straight.step()
    for _ in range(5):
        first.step()
    first.capture().write(tmp_path / "state")
    second.load(tmp_path / "state")
    while second.position.step < second.course.total_steps:
        second.step()
    assert second.position == straight.position
    assert all(torch.equal(one, other) for one, other in zip(weights(straight), weights(second), strict=True))


def test_a_picture_is_nearly_that_of_the_cpu(make: Make, tmp_path: Path) -> None:
    picture = sampling.Picture("sks robot", "", seed=1, width=64, height=64, steps=3, guidance_scale=5)
    on_gpu = sampling.paint(make().model, picture)
    base = tmp_path / "base.safetensors"
    on_cpu = sampling.paint(load_path(base, dtype=torch.float32, device=torch.device("cpu")), picture)
    difference = np.abs(np.asarray(on_gpu, dtype=int) - np.asarray(on_cpu, dtype=int))
    assert difference.max() <= 2


def test_too_little_memory_is_told() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(RunError, match=r"GiB are not enough") as caught, memory_limit():
        torch.empty(4 * total, dtype=torch.uint8, device="cuda")
    assert caught.value.reason is FailureReason.ACCELERATOR_OUT_OF_MEMORY
