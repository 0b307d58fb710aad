"""A device with too little memory: what the run does about it, and that it stays the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darkroom_api.failures import FailureReason
from darkroom_api.memory import AS_ASKED, Adaptation
from darkroom_api.training import Training
from darkroom_trainer import sampling
from darkroom_trainer.adapting import next_adaptation
from darkroom_trainer.dataset import scan
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.hardware import memory_limit
from darkroom_trainer.items import placed
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.preparing import fill
from darkroom_trainer.priors import Prior, repeated
from darkroom_trainer.reducing import Reduction, smaller_resolution
from darkroom_trainer.session import Session
from darkroom_trainer.validating import validation_loss
from tests.builders.memory import little_memory
from tests.builders.pictures import write_pictures
from tests.unit.trainer.sessions import Maker, same, weights

# A large epsilon: where gradients are next to nothing, Adam would blow rounding up to whole steps. No smaller pictures:
# of 64 pixels the UNet's last level has one place, and its normalisation two numbers, which blow up rounding as well.
SQUARES: dict[str, Any] = {
    "batchSize": 4,
    "buckets": {"enabled": False},
    "resolution": 96,
    "schedule": {"type": "Constant"},
    "optimizer": {"type": "AdamW", "learningRate": 2e-3, "epsilon": 1e-3},
}


def adapted(micro_batch: int | None = None, *, twice: bool = False, resolution: int | None = None) -> Adaptation:
    return Adaptation(micro_batch=micro_batch, gradient_checkpointing=twice, resolution=resolution)


@pytest.mark.parametrize(
    ("policy", "now", "together", "found"),
    [
        ("Fail", adapted(), 8, None),
        ("SplitBatch", adapted(), 8, adapted(4)),
        ("SplitBatch", adapted(4), 3, adapted(2)),
        ("SplitBatch", adapted(1), 1, None),
        ("SplitBatchThenCheckpoint", adapted(2), 2, adapted(1)),
        ("SplitBatchThenCheckpoint", adapted(1), 1, adapted(1, twice=True)),
        ("SplitBatchThenCheckpoint", adapted(1, twice=True), 1, None),
        ("ReduceResolution", adapted(twice=True), 1, adapted(twice=True, resolution=448)),
        ("ReduceResolution", adapted(twice=True, resolution=320), 1, adapted(twice=True, resolution=256)),
        ("ReduceResolution", adapted(twice=True, resolution=256), 1, None),
    ],
)
def test_the_ladder_has_these_rungs(policy: str, now: Adaptation, together: int, found: Adaptation | None) -> None:
    training = Training.model_validate({"outOfMemory": policy})
    assert next_adaptation(now, training, together=together) == found


def test_what_the_spec_asks_for_anyway_is_no_rung() -> None:
    training = Training.model_validate({"gradientCheckpointing": True})
    assert next_adaptation(AS_ASKED, training, together=1) is None


def test_only_smaller_batches_help_a_validation() -> None:
    training = Training.model_validate({"outOfMemory": "ReduceResolution"})
    assert next_adaptation(AS_ASKED, training, together=2, trains=False) == adapted(1)
    assert next_adaptation(adapted(1), training, together=1, trains=False) is None


@pytest.mark.parametrize(
    ("training", "resolutions"),
    [
        ({"resolution": 512}, [448, 384, 320, 256]),
        ({"resolution": 1024}, [896, 768, 640, 512]),
        ({"resolution": 512, "buckets": {"minimum": 400}}, [448]),
        ({"resolution": 96, "buckets": {"minimum": 64, "maximum": 128, "step": 32}}, [64]),
        ({"resolution": 512, "buckets": {"enabled": False}}, [448, 384, 320, 256]),
    ],
)
def test_resolutions_become_smaller_down_to_the_half(training: dict[str, Any], resolutions: list[int]) -> None:
    spec, found = Training.model_validate(training), list[int]()
    while (smaller := smaller_resolution(spec, found[-1] if found else spec.resolution)) is not None:
        found.append(smaller)
    assert found == resolutions


@pytest.mark.parametrize(
    ("bucket", "smaller"),
    [((512, 512), (448, 448)), ((256, 1024), (256, 896)), ((832, 320), (704, 256)), ((200, 512), (200, 448))],
)
def test_buckets_keep_their_shape_as_far_as_step_and_minimum_let_them(
    bucket: tuple[int, int], smaller: tuple[int, int]
) -> None:
    assert Reduction(448, 512, step=64, minimum=256).size(bucket) == smaller


def run(session: Session, steps: int) -> list[float]:
    return [session.step().loss for _ in range(steps)]


def agree(one: Session, other: Session) -> None:
    assert one.position.losses == pytest.approx(other.position.losses, rel=1e-5)
    for name, weight in weights(other).items():
        torch.testing.assert_close(weights(one)[name], weight, rtol=1e-4, atol=2e-6)


SPLIT: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "to pairs": ("LoraTraining", {}, 2, 2),
    "to single pictures": ("LoraTraining", {"objective": {"noiseOffset": 0.1}}, 1, 1),
    "in the middle of a window": ("LoraTraining", {"batchSize": 3, "gradientAccumulation": 2, "seed": 3}, 2, 2),
    "a whole model": ("ModelTraining", {"optimizer": {"type": "AdamW", "learningRate": 1e-4, "epsilon": 1e-3}}, 2, 2),
}


@pytest.mark.parametrize("name", SPLIT)
def test_a_split_batch_does_what_the_whole_one_does(make: Maker, name: str) -> None:
    kind, training, most, micro_batch = SPLIT[name]
    chosen = SQUARES | training
    undisturbed, poor = make(kind, **chosen), make(kind, **chosen)
    run(undisturbed, 2)
    with little_memory(poor.model.unet, lambda latents: len(latents) <= most) as refused:
        run(poor, 2)
    assert refused
    assert poor.adapted == adapted(micro_batch)
    agree(poor, undisturbed)


def test_pictures_of_the_class_are_split_too(make: Maker, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "class", folder="1_robot", sizes=[(64, 64)] * 3)

    def with_prior() -> Session:
        session = make("ModelTraining", **SQUARES)
        items = repeated(placed(scan(folder), session.spec.training, path="x"))
        session.course = replace(session.course, prior=Prior(items, 0.5, 42))
        session.latents.fill(session.course.known_ahead, on_item=lambda _: None)
        return session

    undisturbed, poor = with_prior(), with_prior()
    run(undisturbed, 2)
    with little_memory(poor.model.unet, lambda latents: len(latents) <= 2):
        run(poor, 2)
    agree(poor, undisturbed)


def test_activations_are_computed_twice_once_single_pictures_are_too_many(make: Maker) -> None:
    undisturbed, poor = make(**SQUARES), make(**SQUARES)
    run(undisturbed, 2)
    unet = poor.model.unet
    with little_memory(unet, lambda _: bool(unet.is_gradient_checkpointing)) as refused:
        run(poor, 2)
    assert [len(shape) and shape[0] for shape in refused] == [4, 2, 1]
    assert poor.adapted == adapted(1, twice=True)
    agree(poor, undisturbed)


def room_for(side: int) -> Callable[[torch.Tensor], bool]:
    """Return what a device says that has room for training on latents of so many places, and any validation."""
    return lambda latents: not torch.is_grad_enabled() or latents.shape[-1] * latents.shape[-2] <= side * side


SMALLER: dict[str, Any] = {"outOfMemory": "ReduceResolution", "gradientCheckpointing": True, "batchSize": 1}


def test_the_last_resort_shrinks_the_buckets_and_nothing_else(make: Maker) -> None:
    planned, poor = make(**SMALLER), make(**SMALLER, validation={"images": 1})
    with little_memory(poor.model.unet, room_for(64 // 8)):
        assert all(np.isfinite(run(poor, 2)))
        validation_loss(poor, before_batch=lambda _, __: None)
    assert poor.adapted == adapted(resolution=64)
    shown = [item for step in range(poor.course.total_steps) for batch in poor.course.window(step) for item in batch]
    assert {item.placement.bucket for item in shown} == {(64, 64)}
    assert all(min(item.placement.slack) == 0 for item in shown)
    assert any(item.placement.bucket != (64, 64) for item in (*poor.course.items, *poor.course.validation))
    assert planned.course.fingerprint != poor.course.fingerprint  # one picture was held out
    assert replace(planned.course, reduction=poor.course.reduction).fingerprint == planned.course.fingerprint


RESUMED: dict[str, tuple[dict[str, Any], Callable[[Session], Callable[[torch.Tensor], bool]], Adaptation]] = {
    "split": (SQUARES, lambda _: lambda latents: len(latents) <= 1, adapted(1)),
    "twice": (
        {"batchSize": 1},
        lambda session: lambda _: bool(session.model.unet.is_gradient_checkpointing),
        adapted(twice=True),
    ),
    "smaller": (SMALLER, lambda _: room_for(8), adapted(resolution=64)),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_begins_where_the_ladder_stood(make: Maker, tmp_path: Path, name: str) -> None:
    training, fits, found = RESUMED[name]
    straight, resumed = make(**training), make(**training)
    with little_memory(straight.model.unet, fits(straight)):
        run(straight, 1)
        straight.capture().write(tmp_path / "state")
        run(straight, 2)
    resumed.load(tmp_path / "state")  # on a device of any size
    assert resumed.adaptation == found
    run(resumed, 2)
    assert resumed.position == straight.position
    assert same(weights(resumed), weights(straight))


def test_a_state_from_before_memory_lacked_takes_it_back(make: Maker, tmp_path: Path) -> None:
    straight, session = make(**SQUARES), make(**SQUARES)
    session.capture().write(tmp_path / "state")
    unet = session.model.unet
    with little_memory(unet, lambda _: bool(unet.is_gradient_checkpointing)):
        run(session, 1)
    session.load(tmp_path / "state")
    assert session.adapted == AS_ASKED
    assert not unet.is_gradient_checkpointing
    run(session, 2)
    run(straight, 2)
    assert same(weights(session), weights(straight))


@pytest.mark.parametrize(
    ("policy", "tried", "advice"),
    [
        ("Fail", "nothing was to be tried", "Set training.outOfMemory to SplitBatchThenCheckpoint"),
        ("SplitBatch", "tried micro-batches of 1", "Set training.outOfMemory to SplitBatchThenCheckpoint"),
        ("SplitBatchThenCheckpoint", "tried micro-batches of 1, gradient checkpointing", "Allow less"),
        (
            "ReduceResolution",
            "tried micro-batches of 1, gradient checkpointing, resolution 64",
            "Lower training.resolution",
        ),
    ],
)
def test_a_run_that_tried_everything_says_so(make: Maker, policy: str, tried: str, advice: str) -> None:
    session = make(outOfMemory=policy)
    before = weights(session)
    with little_memory(session.model.unet, lambda _: False), pytest.raises(RunError) as caught:
        session.step()
    assert caught.value.reason is FailureReason.ACCELERATOR_OUT_OF_MEMORY
    assert "Tried to allocate 2.00 GiB" in caught.value.message
    assert caught.value.message.endswith(f"training.outOfMemory {policy}: {tried}")
    assert caught.value.advice.startswith(advice)
    assert session.position.step == 0
    assert same(weights(session), before)


def test_an_optimizer_that_has_no_room_ends_the_run(make: Maker) -> None:
    session = make()

    def lacks(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    session.optimizer.optimizer.register_step_pre_hook(lacks)
    with pytest.raises(RunError, match="not enough for the optimizer in step 1 in epoch 1") as caught:
        session.step()
    assert "AdamW8bit" in caught.value.advice


def test_a_validation_is_split_and_measures_the_same(make: Maker) -> None:
    chosen = {"batchSize": 4, "validation": {"images": 2, "draws": 4}}
    undisturbed, poor = make(**chosen), make(**chosen)
    expected = validation_loss(undisturbed, before_batch=lambda _, __: None)
    with little_memory(poor.model.unet, lambda latents: len(latents) <= 1):
        assert validation_loss(poor, before_batch=lambda _, __: None) == pytest.approx(expected, rel=1e-5)
    assert poor.adapted == adapted(1)
    with little_memory(poor.model.unet, lambda _: False), pytest.raises(RunError, match="validation of epoch 0"):
        validation_loss(poor, before_batch=lambda _, __: None)


def painted(model: StableDiffusion, *, side: int = 64) -> np.ndarray[Any, Any]:
    picture = sampling.Picture("sks robot", "blurred", seed=1, width=side, height=side, steps=2, guidance_scale=5)
    return np.asarray(sampling.paint(model, picture), dtype=int)


def test_a_sample_is_painted_prompt_by_prompt_and_looks_the_same(load_model: Callable[..., StableDiffusion]) -> None:
    model = load_model(family="SDXL")
    expected = painted(model)
    with little_memory(model.unet, lambda latents: len(latents) == 1) as refused:
        found = painted(model)
    assert len(refused) == 1  # what did not fit in the first step is not tried in the second
    assert np.abs(found - expected).max() <= 1


def test_a_sample_is_decoded_in_tiles_and_looks_much_the_same(load_model: Callable[..., StableDiffusion]) -> None:
    model = load_model()
    expected = painted(model, side=96)
    with little_memory(model.vae.decoder, lambda latents: max(latents.shape[-2:]) <= 8) as refused:
        found = painted(model, side=96)
    assert refused == [(1, 4, 12, 12)]
    assert found.shape == expected.shape
    assert not np.array_equal(found, expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.8
    assert not model.vae.use_tiling


def test_a_picture_too_large_to_be_encoded_whole_is_encoded_in_tiles(make: Maker, tmp_path: Path) -> None:
    session = make(resolution=96, buckets={"enabled": False})
    vae, (large, *_) = session.model.vae, session.course.items
    cache = LatentCache(tmp_path / "tiles", vae, may_tile=True)
    with little_memory(vae.encoder, lambda pixels: max(pixels.shape[-2:]) <= 64):
        cache.fill([large], on_item=lambda _: None)
        with pytest.raises(RunError, match="GiB are not enough for a picture"), memory_limit("a picture"):
            LatentCache(tmp_path / "whole", vae).fill([large], on_item=lambda _: None)
    assert cache.has_tiled
    whole, found = session.latents.means([large]), cache.means([large])
    assert found.shape == whole.shape
    assert np.corrcoef(found.flatten().numpy(), whole.flatten().numpy())[0, 1] > 0.7
    session.latents = cache
    assert session.adapted.tiled_latents


@pytest.mark.parametrize("may_tile", [True, False])
def test_pictures_are_encoded_alone_before_they_are_tiled(make: Maker, tmp_path: Path, may_tile: bool) -> None:
    session = make(resolution=96, buckets={"enabled": False})
    cache, asked = LatentCache(tmp_path / "latents", session.model.vae), list[int]()
    with little_memory(session.model.vae.encoder, lambda pixels: max(pixels.shape[-2:]) <= 64):
        try:
            fill(cache, session.model, session.course.items, before_item=asked.append, may_tile=may_tile)
        except torch.OutOfMemoryError:
            assert not may_tile
    assert asked == ([0, *range(len(session.course.items))] if may_tile else [0, 0])
    assert cache.has_tiled is may_tile
