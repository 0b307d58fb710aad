"""On an accelerator that is made small: what the run does about it, and that the result is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from darkroom_trainer import sampling
from darkroom_trainer.fitting import release_memory
from darkroom_trainer.offloading import HOST, at_work, let_wait
from darkroom_trainer.session import Session
from tests.gpu.conftest import Make, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]
# Wide enough that activations outweigh everything else, also for one picture.
LARGE: dict[str, Any] = {
    "batchSize": 4,
    "resolution": 512,
    "buckets": {"enabled": False},
    "optimizer": {"type": "AdamW", "learningRate": 2e-3, "epsilon": 1e-3},
    "epochs": 1,
}


def step_bytes(session: Session) -> tuple[int, int]:
    """Return what is allocated between steps and at most within one, after a step has made what stays."""
    session.step()
    release_memory()
    torch.cuda.reset_peak_memory_stats()
    between = torch.cuda.memory_allocated()
    session.step()
    return between, torch.cuda.max_memory_allocated()


@contextmanager
def only(bytes_allowed: float) -> Iterator[None]:
    """Let the process have so much of the device."""
    release_memory()
    torch.cuda.set_per_process_memory_fraction(bytes_allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("precision", ["FP32", "BF16", "FP16"])
def test_a_step_that_does_not_fit_is_split_and_does_the_same(make: Make, precision: str) -> None:
    undisturbed = make(precision=precision, **LARGE)
    expected = [undisturbed.step().loss for _ in range(2)]
    scaler = undisturbed.accelerator.scaler
    scale = scaler.get_scale() if scaler else None
    told = weights(undisturbed)
    between, peak = step_bytes(undisturbed)
    del undisturbed, scaler
    poor = make(precision=precision, **LARGE)
    with only(between + (peak - between) * 0.7):
        losses = [poor.step().loss for _ in range(2)]
    assert poor.adapted.micro_batch in (1, 2)
    tolerance = {"FP32": 1e-4, "BF16": 2e-2, "FP16": 5e-3}[precision]
    assert losses == pytest.approx(expected, rel=tolerance)
    assert (poor.accelerator.scaler.get_scale() if poor.accelerator.scaler else None) == scale
    for one, other in zip(weights(poor), told, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=10 * tolerance * 2e-3)


def test_single_pictures_that_do_not_fit_have_their_activations_computed_twice(make: Make) -> None:
    single = LARGE | {"batchSize": 1}
    undisturbed = make(**single)
    between, peak = step_bytes(undisturbed)
    del undisturbed
    poor = make(**single)
    with only(between + (peak - between) * 0.7):
        poor.step()
    assert poor.adapted.gradient_checkpointing


def test_what_waits_in_host_memory_changes_no_bit(make: Make) -> None:
    frozen: dict[str, Any] = {"optimizer": {"type": "AdamW", "learningRate": 5e-3, "textEncoderLearningRate": 0}}
    held, sparing = make(**frozen), make(**frozen)
    let_wait(sparing, before_prompt=lambda: None)
    model = sparing.model
    assert {it.device for it in (model.vae, *model.text_parts.values())} == {HOST}
    assert [sparing.step().loss for _ in range(3)] == [held.step().loss for _ in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(weights(held), weights(sparing), strict=True))
    picture = sampling.Picture("sks robot", "", seed=1, width=64, height=64, steps=2, guidance_scale=5)
    assert sampling.paint(model, picture).tobytes() == sampling.paint(held.model, picture).tobytes()
    assert {it.device for it in (model.vae, *model.text_parts.values())} == {HOST}


def test_a_part_comes_back_whatever_happens(make: Make) -> None:
    model = make().model

    def lose() -> None:
        with at_work([model.vae, model.unet], HOST):
            assert {model.vae.device, model.unet.device} == {HOST}
            raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        lose()
    assert {model.vae.device, model.unet.device} == {model.device}
