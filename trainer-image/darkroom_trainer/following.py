"""The processes of a run that follow: each trains on its part of every step and does nothing else.

The leader starts them when inputs and latents lie on the disk, and they end with it. torchrun would do as much, but it
answers every failure with exit code 1 and starts anew by itself: here the exit code is the operator's to judge.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]

from darkroom_api.failures import FailureReason
from darkroom_api.training import TrainingSpec
from darkroom_trainer import logs
from darkroom_trainer.batches import Course
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import Family
from darkroom_trainer.hardware import memory_limit
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.offloading import let_wait
from darkroom_trainer.preparing import load_model
from darkroom_trainer.session import ADAPT, LOAD, STEP, Session, open_session
from darkroom_trainer.team import ALONE, Together
from darkroom_trainer.weights_file import open_weights

LOG: Final = logging.getLogger(__name__)
_GOODBYE_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.1
_READY: Final = "ready-{}"
_PROBLEM: Final = "problem-{}"
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
    place: Path
    """The file that the processes meet in."""
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
    place = _meeting_place(latents.parent)
    meeting = FileStore(str(place), size)
    told = Follower(
        spec,
        session.course,
        model=model,
        family=session.model.family,
        latents=latents,
        initial=initial,
        inputs=session.inputs,
        place=place,
        size=size,
    )
    start = multiprocessing.get_context("spawn").Process
    followers = [
        start(target=follow, args=(told, rank), name=f"follower-{rank}", daemon=True) for rank in range(1, size)
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
    except RuntimeError as error:
        raise _explained(error, followers, meeting) from error
    finally:
        session.team = ALONE
        _part(team, followers)


def _meeting_place(directory: Path) -> Path:
    """Let all meet in a file and talk over loopback: they share a pod, and what they say must be nobody else's."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    return directory / f"meeting-{os.getpid()}-{time.monotonic_ns()}"


def _await(followers: Sequence[BaseProcess], meeting: FileStore, check: Callable[[], None]) -> None:
    """Wait until all followers are ready, which takes them as long as it took the leader.

    Raises:
        RunError: One of them cannot, and said why.
        RuntimeError: One of them ended instead.
    """
    while not meeting.check([_READY.format(rank) for rank in range(1, len(followers) + 1)]):
        check()
        if problem := _problem(followers, meeting):
            raise problem
        if lost := _lost(followers):
            raise RuntimeError(f"a process of the run ended before it began: {lost}; its log says why")
        time.sleep(_LOOK_SECONDS)


def _lost(followers: Sequence[BaseProcess]) -> str:
    return ", ".join(f"{it.name} with {it.exitcode}" for it in followers if it.exitcode not in (None, 0))


def _explained(error: RuntimeError, followers: Sequence[BaseProcess], meeting: FileStore) -> Exception:
    """Tell what a process met, or that it was lost: torch only tells that a connection was closed."""
    deadline = time.monotonic() + (_GOODBYE_SECONDS if "onnection" in str(error) else 0)
    while not _lost(followers) and not _problem(followers, meeting) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    if problem := _problem(followers, meeting):
        return problem
    lost = _lost(followers)
    return RuntimeError(f"a process of the run ended: {lost}; {error}") if lost else error


def _problem(followers: Sequence[BaseProcess], meeting: FileStore) -> RunError | None:
    for rank in range(1, len(followers) + 1):
        if meeting.check([_PROBLEM.format(rank)]):
            reason, message, advice = json.loads(meeting.get(_PROBLEM.format(rank)))
            return RunError(FailureReason(reason), message, advice=advice)
    return None


def _part(team: Together, followers: Sequence[BaseProcess]) -> None:
    """Let all leave at the same time, as NCCL wants it; those that are lost are not waited for."""
    complete = all(follower.is_alive() for follower in followers)
    with suppress(RuntimeError):
        if complete:
            team.lead(END)
        if complete or not team.on_gpu:
            team.close()
    _let_go(followers, seconds=_GOODBYE_SECONDS if complete else 0)


def _let_go(followers: Sequence[BaseProcess], *, seconds: float) -> None:
    """See the followers end, by force if they wait for something that will not come."""
    deadline = time.monotonic() + seconds
    for follower in followers:
        follower.join(max(0.0, deadline - time.monotonic()))
        if follower.is_alive():
            follower.kill()
            follower.join()


def follow(told: Follower, rank: int) -> None:
    """Be a follower, from beginning to end."""
    logs.configure(os.environ)
    torch.set_num_threads(max(1, torch.get_num_threads() // told.size))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the leader decides what a stop means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if told.spec.compute.gpus:
        torch.cuda.set_device(rank)
    meeting = FileStore(str(told.place), told.size)
    try:
        with memory_limit(f"process {rank} of the run"):
            session = _open(told)
            meeting.set(_READY.format(rank), "")
            team = Together(meeting, rank=rank, size=told.size, on_gpu=told.spec.compute.gpus > 0)
            session.team = team
            try:
                _obey(session, team)
            finally:
                team.close()
    except RunError as error:  # perhaps all have met it; if not, the leader finds it here
        meeting.set(_PROBLEM.format(rank), json.dumps([error.reason.value, error.message, error.advice]))


def _open(told: Follower) -> Session:
    spec, course = told.spec, told.course
    accelerator, model = load_model(spec, open_weights(told.model), told.family)
    latents = LatentCache(told.latents, model.vae, mask=course.mask, processes=told.size)
    latents.may_tile = spec.training.out_of_memory != "Fail"
    session = open_session(
        spec,
        course,
        model,
        latents=latents,
        accelerator=accelerator,
        inputs=told.inputs,
        initial=open_weights(told.initial) if told.initial else None,
    )
    session.average = None  # only the leader hands over what it is for
    let_wait(session, before_prompt=_go_on)
    return session


def _obey(session: Session, team: Together) -> None:
    while True:
        match team.follow():
            case (word, path) if word == LOAD:
                session.load(Path(path))
            case (word, adaptation) if word == ADAPT:
                session.follow(adaptation)
            case (word,) if word == STEP:
                session.step()
            case _:
                return
