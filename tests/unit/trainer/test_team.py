"""Processes that share a step: the sums are whole, an error is everybody's, and two do what one would."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom_api.failures import FailureReason
from darkroom_api.networks import LoRA
from darkroom_trainer.errors import RunError, StopRequested
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.following import followed
from darkroom_trainer.team import ALONE, Together
from darkroom_trainer.weights_file import open_weights
from tests.builders.networks import trained
from tests.unit.trainer.sessions import Maker, weights
from tests.unit.trainer.team_tasks import join, lead_share_and_fail, sum_gradients


def test_alone_everything_is_ones_own() -> None:
    ALONE.lead("step")
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert ALONE.sum_up(0.5, []) == 0.5
    ALONE.agree(None)
    with pytest.raises(RunError, match="boom"):
        ALONE.agree(RunError(FailureReason.LOSS_NOT_FINITE, "boom"))


def in_two(task: Callable[[Together], Any], place: Path) -> list[Any]:
    """Run a task in two processes and return what each makes of it."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    members = [context.Process(target=join, args=(str(place), rank, task, results)) for rank in (0, 1)]
    for member in members:
        member.start()
    found = dict(results.get(timeout=240) for _ in members)
    for member in members:
        member.join(60)
        assert member.exitcode == 0
    return [found[rank] for rank in (0, 1)]


def test_gradients_and_losses_are_summed_and_none_stays_none(tmp_path: Path) -> None:
    whole = (1.5, [[[3.0] * 3] * 2, [0.5] * 4, None, [2.0**-29]])
    assert in_two(sum_gradients, tmp_path / "meeting") == [whole, whole]


def test_commands_shares_and_errors_reach_all(tmp_path: Path) -> None:
    leader, follower = in_two(lead_share_and_fail, tmp_path / "meeting")
    error = ("LossNotFinite", "one's own", "Do.")
    assert leader == [["a", "c"], error]
    assert follower == [["b"], ("load", "/x"), error]


def test_two_processes_do_what_one_does_in_twice_the_batches(
    make: Maker, load_model: Callable[..., StableDiffusion], base_file: Path, tmp_path: Path
) -> None:
    """The same pictures, noise and weights in the mean; sums in another order, so equal but for rounding."""
    path = tmp_path / "initial.safetensors"
    trained(load_model(), LoRA(rank=4, alpha=2), size=0.05).draft(torch.float32)(path, {})
    initial = open_weights(path)
    alone = make(gradientAccumulation=2, initial=initial)
    expected = [alone.step().loss for _ in range(3)]
    session = make(fields={"compute": {"gpus": 0, "processes": 2}}, initial=initial)
    assert session.course.steps_per_epoch == alone.course.steps_per_epoch
    with followed(session, model=base_file, latents=tmp_path / "latents-SD15", initial=path):
        assert session.team.size == 2
        losses = [session.step().loss for _ in range(2)]
        session.capture().write(tmp_path / "state")
        losses.append(session.step().loss)
        done = weights(session)
        session.load(tmp_path / "state")
        assert session.step().loss == losses[-1]  # the followers have gone back too
        assert all(torch.equal(it, done[name]) for name, it in weights(session).items())
    assert session.team.size == 1
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, weight in weights(alone).items():
        torch.testing.assert_close(done[name], weight, rtol=1e-4, atol=2e-5)


def test_a_lost_process_is_named(make: Maker, base_file: Path, tmp_path: Path) -> None:
    session = make(fields={"compute": {"gpus": 0, "processes": 2}})

    def lose_one() -> None:
        with followed(session, model=base_file, latents=tmp_path / "latents-SD15"):
            session.step()
            (follower,) = multiprocessing.active_children()
            follower.kill()
            session.step()

    with pytest.raises(RuntimeError, match=r"a process of the run ended: follower-1 with -9"):
        lose_one()
    assert not multiprocessing.active_children()


def test_an_error_in_one_process_ends_all(make: Maker, base_file: Path, tmp_path: Path) -> None:
    session = make(fields={"compute": {"gpus": 0, "processes": 2}})

    def break_the_leader() -> None:
        with followed(session, model=base_file, latents=tmp_path / "latents-SD15"):
            for parameter in list(session.trainee.named_parameters().values())[:4]:
                parameter.data.fill_(float("nan"))
            session.step()

    with pytest.raises(RunError, match=r"not finite|is nan") as caught:
        break_the_leader()
    assert caught.value.reason is FailureReason.LOSS_NOT_FINITE
    assert not multiprocessing.active_children()


def test_a_process_that_cannot_begin_is_told_at_once(make: Maker, tmp_path: Path) -> None:
    session = make(fields={"compute": {"gpus": 0, "processes": 2}})

    def begin() -> None:
        with followed(session, model=tmp_path / "missing.safetensors", latents=tmp_path / "latents-SD15"):
            raise AssertionError("it began")

    with pytest.raises(RuntimeError, match=r"ended before it began: follower-1 with 1"):
        begin()
    assert not multiprocessing.active_children()


def test_a_stop_is_heeded_while_the_others_get_ready(make: Maker, base_file: Path, tmp_path: Path) -> None:
    session = make(fields={"compute": {"gpus": 0, "processes": 2}})

    def stop() -> None:
        raise StopRequested

    def begin() -> None:
        with followed(session, model=base_file, latents=tmp_path / "latents-SD15", check=stop):
            raise AssertionError("it began")

    with pytest.raises(StopRequested):
        begin()
    assert not multiprocessing.active_children()
