"""A run in memory: it learns, it stops anywhere and goes on as if it had not."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom_api.failures import FailureReason
from darkroom_trainer import objectives
from darkroom_trainer.batches import Course
from darkroom_trainer.errors import RunError
from darkroom_trainer.hardware import open_accelerator
from darkroom_trainer.items import Item
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.session import Session
from tests.unit.trainer.sessions import Maker, same, weights

AUGMENTED = {"flip": True, "color": True, "randomCrop": True}
NETWORKS: list[dict[str, Any]] = [
    {"type": "LoRA", "rank": 2, "alpha": 2, "convRank": 2, "convAlpha": 1},
    {"type": "LoHa", "rank": 2, "alpha": 2, "convRank": 2, "convAlpha": 1},
    {"type": "LoKr", "rank": 2, "alpha": 2, "convRank": 2, "convAlpha": 1, "factor": 4},
    {"type": "DoRA", "rank": 2, "alpha": 2, "convRank": 2, "convAlpha": 1},
]
RESUMED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "AdamW": ({"optimizer": {"type": "AdamW", "learningRate": 2e-3}}, (1, 4, 7)),
    "AdamW8bit": ({"optimizer": {"type": "AdamW8bit", "learningRate": 2e-3}}, (3,)),
    "Lion": ({"optimizer": {"type": "Lion", "learningRate": 1e-3}}, (3,)),
    "Adafactor": ({"optimizer": {"type": "Adafactor", "learningRate": 2e-3}}, (3,)),
    "Adafactor relative": ({"optimizer": {"type": "Adafactor", "learningRate": 1, "relativeStep": True}}, (3,)),
    "CAME": ({"optimizer": {"type": "CAME", "learningRate": 2e-3}}, (3,)),
    "Prodigy": ({"optimizer": {"type": "Prodigy", "initialD": 1e-4, "safeguardWarmup": True}}, (1, 4)),
    "DAdaptAdam": ({"optimizer": {"type": "DAdaptAdam", "initialD": 1e-4}}, (3,)),
    "ScheduleFreeAdamW": (
        {
            "optimizer": {"type": "ScheduleFreeAdamW", "learningRate": 2e-3},
            "schedule": {"type": "Constant", "warmupSteps": 2},
        },
        (3, 4),
    ),
    **{
        network["type"]: ({"network": network, "optimizer": {"type": "AdamW", "learningRate": 2e-3}}, (3,))
        for network in NETWORKS
    },
    "accumulated": ({"gradientAccumulation": 3, "epochs": 4}, (1, 4, 7)),
    "augmentation": (
        {
            "augmentation": AUGMENTED,
            "mask": {"source": "File", "unmaskedWeight": 0.1},
            "buckets": {"enabled": False},
            "gradientAccumulation": 2,
            "epochs": 4,
        },
        (1, 5),
    ),
    "captions": (
        {
            "captions": {
                "shuffle": True,
                "tagDropout": 0.3,
                "keepTokens": 1,
                "dropoutEveryEpochs": 2,
                "prefix": "{a|an old} photo of",
                "wildcards": True,
            }
        },
        (1, 5),
    ),
    "objective": (
        {
            "objective": {
                "debiased": True,
                "multiresNoise": {"iterations": 3},
                "inputPerturbation": 0.1,
                "loss": {"type": "Huber"},
                "timesteps": {"minimum": 100, "maximum": 900},
            }
        },
        (3,),
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_stopped_run_goes_on_bit_for_bit(make: Maker, tmp_path: Path, name: str) -> None:
    chosen, stops = RESUMED[name]
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


@dataclass(frozen=True)
class Regrouped(Course):
    """A course whose steps show the same pictures, but in batches of another size."""

    together: int = 1

    def window(self, step: int) -> list[list[Item]]:
        items = [item for batch in super().window(step) for item in batch]
        return [items[start : start + self.together] for start in range(0, len(items), self.together)]


def regrouped(session: Session, together: int) -> Session:
    values = {field.name: getattr(session.course, field.name) for field in fields(Course)}
    session.course = Regrouped(**values, together=together)
    return session


# At seed 3 the bucket's short batch comes first in each epoch, together with a full one.
UNEQUAL: dict[str, Any] = {"batchSize": 3, "gradientAccumulation": 2, "buckets": {"enabled": False}, "seed": 3}


@pytest.mark.parametrize(
    ("training", "together", "shown"),
    [
        ({"buckets": {"enabled": False}, "gradientAccumulation": 3}, 6, [[2, 2, 2], [2]]),
        ({"gradientAccumulation": 3}, 1, [[2, 2, 2], [2]]),
        (UNEQUAL, 5, [[2, 3], [3]]),
        ({**UNEQUAL, "augmentation": AUGMENTED, "mask": {"source": "File"}}, 5, [[2, 3], [3]]),
    ],
    ids=["large batch", "across buckets", "short batch", "augmented"],
)
def test_accumulated_batches_do_what_one_batch_of_all_their_pictures_does(
    make: Maker, training: dict[str, Any], together: int, shown: list[list[int]]
) -> None:
    """An epoch's last window is short, and its step follows the mean over the pictures that it has."""
    # A large epsilon: where gradients are next to nothing, Adam would blow rounding up to whole steps.
    chosen = {"optimizer": {"type": "AdamW", "learningRate": 2e-3, "epsilon": 1e-3}, "epochs": 3, **training}
    accumulated, reference = make(**chosen), regrouped(make(**chosen), together)
    windows = [accumulated.course.window(step) for step in range(2)]
    assert [[len(batch) for batch in window] for window in windows] == shown
    assert accumulated.course.total_steps == 6
    while accumulated.position.step < 6:
        accumulated.step()
        reference.step()
    assert accumulated.position.losses == pytest.approx(reference.position.losses, rel=1e-5)
    for name, weight in weights(reference).items():
        torch.testing.assert_close(weights(accumulated)[name], weight, rtol=1e-4, atol=2e-6)


def test_a_window_of_unequal_batches_weighs_every_picture_the_same(make: Maker) -> None:
    session, losses = make(**UNEQUAL), regrouped(make(**UNEQUAL), 1)
    assert [len(batch) for batch in session.course.window(0)] == [2, 3]
    batches = losses.course.window(0)
    captions = losses.spec.training.captions
    each = [
        float(losses._loss(batch, 0, first=number, captions=captions).detach()) for number, batch in enumerate(batches)
    ]
    assert session.step().loss == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_a_gradient_is_cut_to_its_greatest_length_or_left_alone(make: Maker) -> None:
    def moved(limit: float) -> float:
        session = make(
            maximumGradientNorm=limit,
            schedule={"type": "Constant"},
            optimizer={"type": "AdamW", "learningRate": 1, "epsilon": 1, "weightDecay": 0, "beta1": 0, "beta2": 0},
        )
        before = weights(session)
        session.step()
        return sum(float((it - before[name]).square().sum()) for name, it in weights(session).items()) ** 0.5

    # With an epsilon of 1, Adam's first step is nearly the gradient itself.
    free = moved(0)
    assert free > 1e-4
    assert moved(free / 10) == pytest.approx(free / 10, rel=0.05)
    assert moved(free * 100) == free


@pytest.mark.parametrize("kind", ["Prodigy", "DAdaptAdam"])
def test_the_learnt_rate_is_what_is_reported(make: Maker, kind: str) -> None:
    session = make(optimizer={"type": kind, "initialD": 1e-5}, schedule={"type": "Constant"}, epochs=4)
    rates = [session.step().learning_rate for _ in range(6)]
    assert rates[0] == 1e-5
    assert rates[-1] > 2e-5
    assert session.position.learning_rates == rates
    assert session.optimizer.param_groups[0]["d"] >= rates[-1]


def test_what_schedule_free_hands_over_does_not_change_the_run(make: Maker) -> None:
    chosen = {
        "optimizer": {"type": "ScheduleFreeAdamW", "learningRate": 2e-3},
        "schedule": {"type": "Constant", "warmupRatio": 0.3},
    }
    straight, watched = make(**chosen), make(**chosen)
    for _ in range(5):
        straight.step()
        watched.step()
        with watched.evaluating():
            shown = weights(watched)
    assert not same(shown, weights(watched))
    assert same(weights(straight), weights(watched))
    assert straight.position == watched.position


def test_a_step_draws_the_same_noise_however_it_is_cut(make: Maker) -> None:
    session = make(objective={"noiseOffset": 0.1})
    (batch,) = session.course.window(0)
    whole = objectives.joined(
        [session._noised(item, 0, number) for number, item in enumerate(batch)], torch.device("cpu")
    )
    assert torch.equal(session._noised(batch[1], 0, 1).latents_BCHW, whole.latents_BCHW[1:])
    assert not torch.equal(session._noised(batch[1], 0, 0).target_BCHW, whole.target_BCHW[1:])
    assert not torch.equal(session._noised(batch[1], 1, 1).target_BCHW, whole.target_BCHW[1:])


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


def test_the_epoch_decides_whether_captions_are_shown(make: Maker) -> None:
    always, second = make(captions={}), make(captions={"dropoutEveryEpochs": 2})
    while always.epoch < 2:
        always.step()
        second.step()
    shown, found = always.position.losses, second.position.losses
    assert found[:-1] == shown[:-1]
    assert found[-1] != shown[-1]


def test_a_text_encoder_at_rate_0_is_left_alone(make: Maker) -> None:
    session = make(optimizer={"type": "AdamW", "textEncoderLearningRate": 0})
    assert session.trainee.named_parameters("text_encoder") == {}
    assert len(session.peaks) == 1
    session.step()


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["type"])
def test_checkpointing_activations_changes_no_bit(make: Maker, network: dict[str, Any]) -> None:
    plain, checkpointed = make(network=network), make(network=network, gradientCheckpointing=True)
    for _ in range(3):
        plain.step()
        checkpointed.step()
    assert plain.position.losses == checkpointed.position.losses
    assert same(weights(plain), weights(checkpointed))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network["type"])
def test_half_precision_keeps_the_adapter_in_fp32(make: Maker, network: dict[str, Any]) -> None:
    session = make(precision="BF16", network=network, schedule={"type": "Constant"})
    before = weights(session)
    done = session.step()
    assert {it.dtype for it in session.trainee.named_parameters().values()} == {torch.float32}
    assert done.loss == pytest.approx(make().step().loss, rel=0.05)
    session.step()
    moved = [name for name, it in weights(session).items() if not torch.equal(it, before[name])]
    assert len(moved) > 0.9 * len(before)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_pictures(make: Maker) -> None:
    session = make()
    session.trainee.layers[0].weights["up"].data.fill_(float("nan"))
    with pytest.raises(RunError, match=r"loss of step 1 in epoch 1 is nan; its pictures: 2_sks robot/") as caught:
        session.step()
    assert caught.value.reason is FailureReason.LOSS_NOT_FINITE


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_moves_a_weight(make: Maker) -> None:
    """A finite loss may have one: at this rate the second step's loss is finite and its gradient is not."""
    session = make(
        network={"type": "LoRA", "rank": 1, "alpha": 4096},
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
        LatentCache(tmp_path / "other", vae).fill(session.course.items, on_item=lambda _: None)


def test_every_augmentation_changes_what_is_learned(make: Maker) -> None:
    def first_loss(**augmentation: bool) -> float:
        session = make(buckets={"enabled": False}, batchSize=8, augmentation=augmentation)
        return session.step().loss

    losses = [first_loss(), *(first_loss(**{name: True}) for name in AUGMENTED)]
    assert len(set(losses)) == 4


def test_latents_are_drawn_anew_each_time(make: Maker) -> None:
    session = make()
    batch = session.course.window(0)[0]
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
