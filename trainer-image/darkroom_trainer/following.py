"""The processes of a run that follow: each trains on its part of every step and does nothing else.

The leader starts them when inputs and latents lie on the disk, and they end with it. torchrun would do as much, but it
answers every failure with exit code 1 and starts anew by itself: here the exit code is the operator's to judge.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from darkroom_api.training import TrainingSpec
from darkroom_trainer import logs
from darkroom_trainer.batches import Course
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import Family
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.preparing import load_model
from darkroom_trainer.session import ADAPT, LOAD, STEP, Session, open_session
from darkroom_trainer.team import ALONE, Together
from darkroom_trainer.weights_file import open_weights

LOG: Final = logging.getLogger(__name__)
_MEETING_PLACE: Final = "127.0.0.1"
_GOODBYE_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.1
_READY: Final = "ready-{}"
END: Final = "end"


def _go_on() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Follower:
    """All that a follower must know; everything else lies on the disk that it shares with the leader."""

    spec: TrainingSpec
    course: Course
    model: Path
    family: Family
    latents: Path
    initial: Path | None
    inputs: str
    port: int
    rank: int
    size: int


@contextmanager
def followed(
    session: Session,
    *,
    model: Path,
    latents: Path,
    initial: Path | None = None,
    check: Callable[[], None] = _go_on,
) -> Iterator[None]:
    """Start the followers of a session, if its spec asks for any, and let them go at the end.

    Args:
        session: The leader's.
        model: The base model's file.
        latents: Where the encoded pictures lie.
        initial: The file of weights that training begins with, if it does.
        check: Called while the followers get ready; may raise to give up.
    """
    spec = session.spec
    size = spec.compute.num_processes
    if size == 1:
        yield
        return
    meeting = TCPStore(_MEETING_PLACE, 0, is_master=True, wait_for_workers=False)
    start = multiprocessing.get_context("spawn").Process
    followers = [
        start(
            target=follow,
            args=(
                Follower(
                    spec,
                    session.course,
                    model=model,
                    family=session.model.family,
                    latents=latents,
                    initial=initial,
                    inputs=session.inputs,
                    port=meeting.port,
                    rank=rank,
                    size=size,
                ),
            ),
            name=f"follower-{rank}",
            daemon=True,
        )
        for rank in range(1, size)
    ]
    LOG.info("Starting %d processes beside this one", len(followers))
    try:
        for follower in followers:
            follower.start()
        _await(followers, meeting, check)
    except BaseException:
        _let_go(followers, seconds=0)
        raise
    torch.set_num_threads(max(1, torch.get_num_threads() // size))
    team = session.team = Together(meeting, rank=0, size=size, on_gpu=spec.compute.gpus > 0)
    try:
        yield
        team.lead(END)
    except RuntimeError as error:
        raise _explained(error, followers) from error
    finally:
        session.team = ALONE
        _let_go(followers, seconds=_GOODBYE_SECONDS)
        team.close()


def _await(followers: Sequence[BaseProcess], meeting: TCPStore, check: Callable[[], None]) -> None:
    """Wait until all followers are ready, which takes them as long as it took the leader.

    Raises:
        RuntimeError: One of them ended instead.
    """
    while not meeting.check([_READY.format(rank) for rank in range(1, len(followers) + 1)]):
        check()
        lost = _lost(followers)
        if lost:
            raise RuntimeError(f"a process of the run ended before it began: {lost}; its log says why")
        time.sleep(_LOOK_SECONDS)


def _lost(followers: Sequence[BaseProcess]) -> str:
    return ", ".join(f"{it.name} with {it.exitcode}" for it in followers if it.exitcode not in (None, 0))


def _explained(error: RuntimeError, followers: Sequence[BaseProcess]) -> RuntimeError:
    """Name the process that was lost, if one was: torch only tells that a connection was closed."""
    for follower in followers:
        follower.join(_GOODBYE_SECONDS if "onnection" in str(error) else 0)
    lost = _lost(followers)
    return RuntimeError(f"a process of the run ended: {lost}; {error}") if lost else error


def _let_go(followers: Sequence[BaseProcess], *, seconds: float) -> None:
    """See the followers end, by force if they wait for something that will not come."""
    deadline = time.monotonic() + seconds
    for follower in followers:
        follower.join(max(0.0, deadline - time.monotonic()))
        if follower.is_alive():
            follower.kill()
            follower.join()


def follow(told: Follower) -> None:
    """Be a follower, from beginning to end."""
    logs.configure(os.environ)
    torch.set_num_threads(max(1, torch.get_num_threads() // told.size))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the leader decides what a stop means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if told.spec.compute.gpus:
        torch.cuda.set_device(told.rank)
    meeting = TCPStore(_MEETING_PLACE, told.port, is_master=False)
    accelerator, model = load_model(told.spec, open_weights(told.model), told.family)
    may_tile = told.spec.training.out_of_memory != "Fail"
    latents = LatentCache(told.latents, model.vae, mask=told.course.mask, may_tile=may_tile)
    session = open_session(
        told.spec,
        told.course,
        model,
        latents=latents,
        accelerator=accelerator,
        inputs=told.inputs,
        initial=open_weights(told.initial) if told.initial else None,
    )
    meeting.set(_READY.format(told.rank), "")
    team = session.team = Together(meeting, rank=told.rank, size=told.size, on_gpu=told.spec.compute.gpus > 0)
    while True:
        match team.follow():
            case (word, path) if word == LOAD:
                session.load(Path(path))
            case (word, adaptation) if word == ADAPT:
                session.follow(adaptation)
            case (word,) if word == STEP:
                try:
                    session.step()
                except RunError:
                    return  # all have met it; the leader tells
            case _:
                return
