"""A run in memory: it learns, it stops anywhere and goes on as if it had not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError
from darkroom_trainer.hardware import open_accelerator
from darkroom_trainer.latents import LatentCache
from tests.unit.trainer.sessions import Maker, same, weights


@pytest.mark.parametrize(("optimizer", "stops"), [("AdamW", (1, 4, 7)), ("Adafactor", (3,))])
def test_a_stopped_run_goes_on_bit_for_bit(make: Maker, tmp_path: Path, optimizer: str, stops: tuple[int, ...]) -> None:
    chosen = {"optimizer": {"type": optimizer, "learningRate": 2e-3}}
    straight = make(**chosen)
    begun, total = weights(straight), straight.course.total_steps
    assert total == 8
    while straight.position.step < total:
        straight.step()
        if straight.position.step in stops:
            straight.capture().write(tmp_path / f"state-{straight.position.step}")
    assert not same(weights(straight), begun)

    for stop in stops:
        resumed = make(**chosen)
        resumed.load(tmp_path / f"state-{stop}")
        assert resumed.position.step == stop
        while resumed.position.step < total:
            resumed.step()
        assert resumed.position == straight.position
        assert same(weights(resumed), weights(straight))


def test_a_state_holds_plain_tensors_and_json(make: Maker, tmp_path: Path) -> None:
    session = make()
    session.step()
    names = [path.name for path in session.capture().write(tmp_path / "state")]
    assert names == ["adapter.safetensors", "optimizer.safetensors", "state.json"]
    assert all(not path.read_bytes().startswith((b"PK", b"\x80")) for path in (tmp_path / "state").iterdir())


def test_a_snapshot_does_not_change_with_the_run(make: Maker, tmp_path: Path) -> None:
    session = make()
    session.step()
    snapshot = session.capture()
    session.step()
    snapshot.write(tmp_path / "state")
    session.load(tmp_path / "state")
    assert session.position.step == 1
    one_step = make()
    one_step.step()
    assert same(weights(session), weights(one_step))


def test_other_pictures_cannot_go_on(make: Maker, tmp_path: Path) -> None:
    make(inputs="then").capture().write(tmp_path / "state")
    with pytest.raises(RunError, match="changed since this run began") as caught:
        make(inputs="now").load(tmp_path / "state")
    assert caught.value.reason is FailureReason.DATASET_REJECTED


def test_a_damaged_state_is_named(make: Maker, tmp_path: Path) -> None:
    session = make()
    session.capture().write(tmp_path / "state")
    (tmp_path / "state" / "adapter.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="the saved state state cannot be read"):
        session.load(tmp_path / "state")


def test_it_learns(make: Maker) -> None:
    """The same few pictures, unshuffled and at a high rate: the loss must fall."""
    session = make(
        epochs=8, optimizer={"type": "AdamW", "learningRate": 1e-2}, captions={}, schedule={"type": "Constant"}
    )
    while session.position.step < session.course.total_steps:
        session.step()
    losses, quarter = session.position.losses, session.course.total_steps // 4
    assert sum(losses[-quarter:]) < 0.9 * sum(losses[:quarter])


def test_a_text_encoder_at_rate_0_is_left_alone(make: Maker) -> None:
    session = make(optimizer={"type": "AdamW", "textEncoderLearningRate": 0})
    assert session.adapter.named_parameters("text_encoder") == {}
    assert len(session.peaks) == 1
    session.step()


def test_checkpointing_activations_changes_no_bit(make: Maker) -> None:
    plain, checkpointed = make(), make(gradientCheckpointing=True)
    for _ in range(3):
        plain.step()
        checkpointed.step()
    assert plain.position.losses == checkpointed.position.losses
    assert same(weights(plain), weights(checkpointed))


def test_half_precision_keeps_the_adapter_in_fp32(make: Maker) -> None:
    session = make(precision="BF16")
    done = session.step()
    assert {it.dtype for it in session.adapter.named_parameters().values()} == {torch.float32}
    assert done.loss == pytest.approx(make().step().loss, rel=0.05)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_pictures(make: Maker) -> None:
    session = make()
    session.adapter.pairs[0].up.data.fill_(float("nan"))
    with pytest.raises(RunError, match=r"loss of step 1 in epoch 1 is nan; its pictures: 2_sks robot/") as caught:
        session.step()
    assert caught.value.reason is FailureReason.LOSS_NOT_FINITE


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_moves_a_weight(make: Maker) -> None:
    """A finite loss may have one: at this rate the second step's loss is finite and its gradient is not."""
    session = make(
        network={"rank": 1, "alpha": 4096},
        optimizer={"type": "AdamW", "learningRate": 10},
        schedule={"type": "Constant"},
    )
    session.step()
    before = weights(session)
    with pytest.raises(RunError, match=r"gradient's norm of step 2 in epoch 1 is nan; its pictures: 2_sks") as caught:
        session.step()
    assert caught.value.reason is FailureReason.LOSS_NOT_FINITE
    assert session.position.step == 1
    assert same(weights(session), before)


def test_a_vae_that_gives_nan_is_named_with_the_picture(make: Maker, tmp_path: Path) -> None:
    session = make()
    vae = session.model.vae
    vae.encoder.conv_in.weight.data.fill_(float("inf"))
    with pytest.raises(RunError, match=r"not finite for 2_sks robot/0.png"):
        LatentCache(tmp_path / "other").fill(session.course.items, vae, on_item=lambda _: None)


def test_latents_are_drawn_anew_each_time(make: Maker) -> None:
    session = make()
    batch = session.course.batch(0)
    one, two = (session.latents.draw(batch, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert one.shape[0] == len(batch)
    assert not torch.equal(one, two)


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(RunError, match="FP16 needs a GPU"):
        open_accelerator("FP16", gpus=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_told() -> None:
    with pytest.raises(RunError, match="torch sees no GPU"):
        open_accelerator("FP32", gpus=1)
