"""Several processes of one run, which share the pictures of every step: one leads, the others follow.

Each takes every so-many-th batch of the step; their gradients are summed before the optimizer steps, so all hold equal
weights and a step means what it means on one device: the mean over all its pictures. The leader alone speaks to store
and operator. Neighbours: `session` calls, `following` is what the others do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError

T = TypeVar("T")
_STEP: Final = timedelta(minutes=30)
"""How long a process waits for the others in a step."""
_FOR_EVER: Final = timedelta(days=30)
"""How long followers wait for a command: samples, validation and an absent store take their time."""
_CHUNK: Final = 2**24
"""Numbers that are summed at once, 64 MiB: larger ones would cost memory, smaller ones time."""


class Team(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int:
        """Return which process this is; 0 leads."""
        ...

    @property
    def size(self) -> int:
        """Return how many there are."""
        ...

    def lead(self, *command: Any) -> None:
        """Let the others do something; nothing in a follower."""
        ...

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Return what is this process's part."""
        ...

    def agree(self, error: RunError | None, lacking: str | None = None) -> str | None:
        """Raise in all processes what one of them has met; return what memory lacked in one of them, if it did.

        Raises:
            RunError: The first error, in order of ranks.
        """
        ...

    def sum_up(self, value: float, parameters: Iterable[torch.nn.Parameter]) -> float:
        """Sum a number and all gradients over the processes; return the number's sum."""
        ...


@dataclass(frozen=True)
class Alone:
    """A run of one process."""

    rank: int = 0
    size: int = 1

    def lead(self, *command: Any) -> None:
        """Do nothing: nobody follows."""

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Return all of it."""
        return parts

    def agree(self, error: RunError | None, lacking: str | None = None) -> str | None:
        """Raise the error, if there is one."""
        if error is not None:
            raise error
        return lacking

    def sum_up(self, value: float, parameters: Iterable[torch.nn.Parameter]) -> float:
        """Return the number as it is."""
        return value


ALONE: Final = Alone()


class Together:
    """A process among others, joined by torch.distributed: NCCL between GPUs, gloo between CPUs.

    Args:
        store: Where the processes meet.
        rank: Which one this is.
        size: How many there are.
        on_gpu: Whether gradients lie on GPUs.
    """

    def __init__(self, store: Store, *, rank: int, size: int, on_gpu: bool) -> None:
        self.rank, self.size, self.on_gpu = rank, size, on_gpu
        dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=_STEP)
        if on_gpu:  # NCCL takes its memory at the first sum: later the activations might have left none
            dist.all_reduce(torch.zeros(1, device="cuda"))
        self._words: Any = dist.new_group(backend="gloo", timeout=_FOR_EVER)

    def lead(self, *command: Any) -> None:
        """Let the others do something; nothing in a follower."""
        if self.rank == 0:
            dist.broadcast_object_list([command], src=0, group=self._words)

    def follow(self) -> tuple[Any, ...]:
        """Return what the leader wants next."""
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0, group=self._words)
        command: tuple[Any, ...] = heard[0]
        return command

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Return every so-many-th part."""
        return parts[self.rank :: self.size]

    def agree(self, error: RunError | None, lacking: str | None = None) -> str | None:
        """Raise in all processes what one of them has met; return what memory lacked in one of them, if it did.

        Raises:
            RunError: The first error, in order of ranks.
        """
        told: list[Any] = [None] * self.size
        mine = (error.reason.value, error.message, error.advice) if error else None
        dist.all_gather_object(told, (mine, lacking), group=self._words)
        first = next((problem for problem, _ in told if problem is not None), None)
        if first is not None:
            raise RunError(FailureReason(first[0]), first[1], advice=first[2])
        return next((lack for _, lack in told if lack is not None), None)

    def sum_up(self, value: float, parameters: Iterable[torch.nn.Parameter]) -> float:
        """Sum a number and all gradients over the processes; return the number's sum.

        A weight without a gradient in every process keeps none, so that the optimizer leaves it alone.
        """
        parameters = list(parameters)
        has_one = torch.tensor([it.grad is not None for it in parameters] or [False], dtype=torch.uint8)
        dist.all_reduce(has_one, op=dist.ReduceOp.MAX, group=self._words)
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total, group=self._words)
        taking_part = list(itertools.compress(parameters, has_one.tolist()))
        for parameter in taking_part:
            if parameter.grad is None:  # the last step of an epoch may have fewer batches than there are processes
                parameter.grad = torch.zeros_like(parameter)
        for chunk in _chunks(taking_part):
            gradients = [it.grad for it in chunk if it.grad is not None]
            flat = torch.cat([it.reshape(-1) for it in gradients])
            dist.all_reduce(flat)
            for gradient, summed in zip(gradients, torch.split(flat, [it.numel() for it in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        return float(total)

    def close(self) -> None:
        """Leave the others."""
        dist.destroy_process_group()


def _chunks(parameters: Sequence[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    chunks: list[list[torch.nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if not chunks or parameter.numel() > room:
            chunks.append([])
            room = _CHUNK
        chunks[-1].append(parameter)
        room -= parameter.numel()
    return chunks
