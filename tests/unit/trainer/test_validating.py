"""The validation loss: the objective's formula, the same noise for ever, and nothing of it left in the training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.masks import Mask
from darkroom_api.text_encoding import TextEncoding
from darkroom_trainer.buckets import Placement
from darkroom_trainer.conditioning import encode_prompts
from darkroom_trainer.dataset import Picture
from darkroom_trainer.errors import RunError, StopRequested
from darkroom_trainer.families.configurations import SCHEDULER
from darkroom_trainer.items import Item
from darkroom_trainer.metadata import BaseModelFile
from darkroom_trainer.pixels import to_mask, to_pixels
from darkroom_trainer.publishing import Publisher
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.results import Results
from darkroom_trainer.services import Services
from darkroom_trainer.session import Session
from darkroom_trainer.stopping import StopSignal
from darkroom_trainer.store import Store
from darkroom_trainer.validating import Look, batches_of_looks, fixed_noise, validation_loss
from tests.unit.trainer.sessions import Maker, same, weights

HELD_OUT = {"images": 2, "draws": 3}


def measure(session: Session) -> float:
    return validation_loss(session, before_batch=lambda _number, _total: None)


def learn(session: Session) -> None:
    """Move the weights; a warm-up begins at rate 0, so one step would not."""
    session.step()
    session.step()


def item(content: int, *, name: str = "x.png", bucket: tuple[int, int] = (64, 64)) -> Item:
    picture = Picture(Path(name), name, "1_x", bucket, "a", 1, f"{content:064x}")
    return Item(picture, Placement(bucket, bucket))


def test_the_noise_of_a_look_is_fixed_by_seed_content_and_draw() -> None:
    def noise(look: Look, seed: int = 1) -> tuple[torch.Tensor, int]:
        return fixed_noise(look, (4, 8, 8), seed=seed, draws=4, timesteps=range(1000))

    before = noise(Look(item(1), 0))
    torch.manual_seed(99)
    torch.randn(5)
    again = noise(Look(item(1, name="elsewhere/y.png"), 0))
    assert torch.equal(again[0], before[0])
    assert again[1] == before[1]
    for other in (noise(Look(item(2), 0)), noise(Look(item(1), 1)), noise(Look(item(1), 0), seed=2)):
        assert not torch.equal(other[0], before[0])


@given(st.integers(1, 100), st.integers(0, 2**32 - 1), st.integers(0, 900))
def test_each_draw_has_a_share_of_the_trained_timesteps_to_itself(draws: int, seed: int, first: int) -> None:
    trained = range(first, 1000)
    for draw in range(draws):
        _, timestep = fixed_noise(Look(item(1), draw), (1, 1, 1), seed=seed, draws=draws, timesteps=trained)
        share = trained[len(trained) * draw // draws : len(trained) * (draw + 1) // draws]
        assert timestep in share


@given(st.integers(1, 100), st.integers(0, 999), st.integers(1, 100))
def test_fewer_timesteps_than_draws_are_all_looked_at_and_no_others(draws: int, first: int, number: int) -> None:
    trained = range(first, min(first + number, first + draws, 1000))
    looks = (Look(item(1), draw) for draw in range(draws))
    found = {fixed_noise(look, (1, 1, 1), seed=1, draws=draws, timesteps=trained)[1] for look in looks}
    assert found == set(trained)


def test_batches_are_of_one_bucket_and_hold_every_look_once() -> None:
    items = [item(1), item(2, bucket=(96, 64)), item(3)]
    batches = batches_of_looks(items, draws=3, batch_size=4)
    assert [len(batch) for batch in batches] == [4, 2, 3]
    assert all(len({look.item.placement.bucket for look in batch}) == 1 for batch in batches)
    looks = [look for batch in batches for look in batch]
    assert sorted((look.item.picture.sha256, look.draw) for look in looks) == sorted(
        (it.picture.sha256, draw) for it in items for draw in range(3)
    )


@torch.no_grad()
def by_the_formula(
    session: Session, *, count: Callable[[torch.Tensor], torch.Tensor] = torch.square, timesteps: range = range(1000)
) -> float:
    """Look at one picture after the other, noised by diffusers, weighed by min-SNR as it was published."""
    scheduler = DDPMScheduler(**{name: SCHEDULER[name] for name in ("beta_start", "beta_end", "beta_schedule")})
    losses = []
    for held in session.course.validation:
        clean = session.latents.means([held]) * session.model.vae.config.scaling_factor
        condition = encode_prompts(session.model, [held.picture.caption], TextEncoding()).states_BLD
        for draw in range(3):
            noise, timestep = fixed_noise(Look(held, draw), clean.shape[1:], seed=42, draws=3, timesteps=timesteps)
            at = torch.tensor([timestep])
            noised = scheduler.add_noise(clean, noise.unsqueeze(0), at)
            predicted = session.model.unet(noised, at, encoder_hidden_states=condition, return_dict=False)[0]
            alpha = scheduler.alphas_cumprod[timestep]
            ratio = float(alpha / (1 - alpha))
            losses.append(min(ratio, 5) / ratio * float(count(predicted - noise).mean()))
    return sum(losses) / len(losses)


def test_it_is_the_runs_objective_over_the_held_out_pictures(make: Maker) -> None:
    session = make(validation=HELD_OUT)
    assert len(session.course.validation) == 2
    learn(session)
    assert measure(session) == pytest.approx(by_the_formula(session), rel=1e-5)


def test_it_heeds_the_objectives_loss_and_timesteps(make: Maker) -> None:
    def huber(errors: torch.Tensor) -> torch.Tensor:
        return 2 * 0.3 * ((errors.square() + 0.3**2).sqrt() - 0.3)

    asked = {
        "minSnrGamma": 5,
        "loss": {"type": "Huber", "delta": 0.3, "schedule": "Constant"},
        "timesteps": {"minimum": 400, "maximum": 600},
    }
    session = make(validation=HELD_OUT, objective=asked)
    learn(session)
    found = measure(session)
    assert found == pytest.approx(by_the_formula(session, count=huber, timesteps=range(400, 600)), rel=1e-5)
    others = by_the_formula(session, timesteps=range(400, 600)), by_the_formula(session, count=huber)
    assert all(abs(other / found - 1) > 1e-3 for other in others)


@pytest.mark.parametrize("option", [{"noiseOffset": 0.5}, {"multiresNoise": {}}, {"inputPerturbation": 0.5}])
def test_what_is_added_to_the_noise_in_training_stays_out(make: Maker, option: dict[str, Any]) -> None:
    plain = measure(make(validation=HELD_OUT, objective={}))
    assert measure(make(validation=HELD_OUT, objective=option)) == plain


@torch.no_grad()
def test_it_looks_through_the_masks(make: Maker) -> None:
    """Of one picture at one timestep, whose loss is counted here place by place."""
    mask = Mask(source="File", unmasked_weight=0.25)
    session = make(validation={"images": 1, "draws": 1}, objective={}, mask=mask.model_dump(by_alias=True))
    (held,) = session.course.validation
    clean = session.latents.means([held]) * session.model.vae.config.scaling_factor
    noise, timestep = fixed_noise(Look(held, 0), clean.shape[1:], seed=42, draws=1, timesteps=range(1000))
    scheduler = DDPMScheduler(**{name: SCHEDULER[name] for name in ("beta_start", "beta_end", "beta_schedule")})
    at = torch.tensor([timestep])
    noised = scheduler.add_noise(clean, noise.unsqueeze(0), at)
    condition = encode_prompts(session.model, [held.picture.caption], TextEncoding()).states_BLD
    predicted = session.model.unet(noised, at, encoder_hidden_states=condition, return_dict=False)[0]
    errors = (predicted - noise).square()
    places = to_mask(held, mask).clamp(min=0.25)
    assert measure(session) == pytest.approx(float((errors * places).mean()), rel=1e-5)
    assert measure(session) < 0.9 * float(errors.mean())


class Nowhere:
    """A publisher that keeps nothing."""

    def publish(self, *_: object, **__: object) -> None: ...

    def publish_final(self, *_: object) -> None: ...

    def publish_events(self, *_: object) -> None: ...

    def flush(self) -> None: ...


def close_epoch(session: Session, epoch: int, work: Path, *, stop: StopSignal) -> None:
    """End an epoch as a run does."""
    store, publisher = cast("Store", None), cast("Publisher", Nowhere())
    base = Future[BaseModelFile]()
    base.set_result(BaseModelFile("m.safetensors", "0" * 64, "0" * 8))
    services = Services(store, publisher, Reporter("run", "pod"), stop, work)
    results = Results("anna", session, services, base)
    results.close_epoch(epoch)
    results.flush()


def test_schedule_free_is_judged_by_the_averaged_weights_and_trains_on_where_it_was(
    make: Maker, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "optimizer": {"type": "ScheduleFreeAdamW", "learningRate": 2e-2},
        "schedule": {"type": "Constant"},
    }
    judged, straight = make(validation=HELD_OUT, **settings), make(validation=HELD_OUT, **settings)
    while judged.epoch_to_close != 1:
        judged.position.closed_epoch = 0
        judged.step()
        straight.step()
    with straight.evaluating():
        averaged = measure(straight)
    assert abs(measure(straight) / averaged - 1) > 1e-4

    stopping = StopSignal()
    stopping.request()
    with pytest.raises(StopRequested):
        close_epoch(judged, 1, tmp_path / "stopped", stop=stopping)
    assert same(weights(judged), weights(straight))
    close_epoch(judged, 1, tmp_path / "closed", stop=StopSignal())
    assert judged.position.validations == {1: averaged}
    assert same(weights(judged), weights(straight))
    judged.step()
    straight.step()
    assert same(weights(judged), weights(straight))


def test_two_validations_of_the_same_weights_are_equal_to_the_bit(make: Maker) -> None:
    session = make(validation=HELD_OUT)
    first = measure(session)
    learn(session)
    moved = measure(session)
    assert moved != first
    assert measure(session) == moved
    assert measure(make(validation=HELD_OUT)) == first


@torch.no_grad()
def test_captions_are_shown_whole_and_the_encoders_noise_stays_out(make: Maker) -> None:
    plain = make(validation=HELD_OUT, captions={"prefix": "old,"})
    lively = make(validation=HELD_OUT, captions={"prefix": "old,", "shuffle": True, "tagDropout": 1, "dropout": 1})
    assert measure(lively) == measure(plain)
    assert measure(make(validation=HELD_OUT, captions={})) != measure(plain)
    held = plain.course.validation[0]
    encoded = plain.model.vae.encode(to_pixels(held).unsqueeze(0)).latent_dist
    assert torch.equal(plain.latents.means([held]), encoded.mean)
    assert not torch.equal(plain.latents.draw([held], torch.Generator().manual_seed(1)), encoded.mean)


def test_pictures_are_shown_as_they_are(make: Maker) -> None:
    augmentation = {"flip": True, "color": True, "randomCrop": True}
    assert measure(make(validation=HELD_OUT, augmentation=augmentation)) == measure(make(validation=HELD_OUT))


def test_the_size_of_a_batch_changes_nothing_but_rounding(make: Maker) -> None:
    assert measure(make(validation=HELD_OUT, batchSize=1)) == pytest.approx(
        measure(make(validation=HELD_OUT, batchSize=5)), rel=1e-5
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_validation_leaves_no_trace_in_the_training(make: Maker, checkpointing: bool) -> None:
    settings = {"validation": HELD_OUT, "gradientCheckpointing": checkpointing}
    undisturbed, validated = make(**settings), make(**settings)
    for _ in range(3):
        undisturbed.step()
        before = weights(validated)
        measure(validated)
        assert same(weights(validated), before)
        validated.step()
    assert same(weights(validated), weights(undisturbed))
    assert validated.position == undisturbed.position


def test_held_out_pictures_may_be_looked_at_and_are_not_learned(make: Maker) -> None:
    session = make(validation=HELD_OUT)
    held = {it.picture.sha256 for it in session.course.validation}
    windows = [session.course.window(step) for step in range(session.course.total_steps)]
    trained = {it.picture.sha256 for window in windows for batch in window for it in batch}
    assert len(held) == 2
    assert len(trained) == 2
    assert not held & trained


def test_it_may_be_given_up_before_each_batch(make: Maker) -> None:
    session, seen = make(validation=HELD_OUT), list[tuple[int, int]]()

    def stop_at_second(number: int, total: int) -> None:
        seen.append((number, total))
        if number == 2:
            raise StopRequested

    with pytest.raises(StopRequested):
        validation_loss(session, before_batch=stop_at_second)
    total = len(batches_of_looks(session.course.validation, draws=3, batch_size=2))
    assert seen == [(1, total), (2, total)]
    assert session.position.validations == {}


def test_a_loss_that_is_not_finite_names_the_pictures(make: Maker) -> None:
    session = make(validation=HELD_OUT)
    session.trainee.layers[0].weights["up"].data.fill_(float("nan"))
    with pytest.raises(RunError, match="validation loss of epoch 0 is nan; its pictures: 2_sks robot/"):
        measure(session)


def test_half_precision_measures_nearly_the_same(make: Maker) -> None:
    exact, half = make(validation=HELD_OUT), make(validation=HELD_OUT, precision="BF16")
    assert measure(half) == pytest.approx(measure(exact), rel=0.05)


def test_a_resumed_run_knows_the_losses_to_the_bit_and_stops_where_it_would_have(make: Maker, tmp_path: Path) -> None:
    asked = HELD_OUT | {"earlyStopping": {"patience": 1, "minimumImprovement": 100}}
    session = make(validation=asked, epochs=9)
    session.position.record_validation(0, measure(session))
    assert (session.last_epoch, session.early_stop) == (9, None)
    session.position.closed_epoch = 0
    while session.epoch_to_close is None:
        session.step()
    session.position.record_validation(1, measure(session))
    session.capture().write(tmp_path / "state")

    resumed = make(validation=asked, epochs=9)
    resumed.load(tmp_path / "state")
    assert resumed.position.validations == session.position.validations
    assert resumed.early_stop == session.early_stop
    assert resumed.early_stop
    assert (resumed.last_epoch, resumed.is_finished, resumed.epoch_to_close) == (1, False, 1)
    resumed.position.closed_epoch = 1
    assert resumed.is_finished
