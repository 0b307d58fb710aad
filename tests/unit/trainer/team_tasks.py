"""What the processes of `test_team` do: apart from it, since each imports all that its task's module does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]

from darkroom_api.failures import FailureReason
from darkroom_trainer import team as teams
from darkroom_trainer.errors import RunError
from darkroom_trainer.team import Together


def join(place: str, rank: int, task: Callable[[Together], Any], results: Any) -> None:
    torch.set_num_threads(1)
    team = Together(FileStore(place, 2), rank=rank, size=2, on_gpu=False)
    try:
        results.put((rank, task(team)))
    finally:
        team.close()


def sum_gradients(team: Together) -> tuple[float, list[Any]]:
    teams._CHUNK = 8  # several chunks
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (5,), (1,))]
    parameters[0].grad = torch.full((2, 3), 1.0 + team.rank)
    if team.rank:  # the others have none: a step with fewer batches than processes
        parameters[1].grad = torch.full((4,), 0.5)
    parameters[3].grad = torch.tensor([2.0**-30])
    total = team.sum_up(0.25 + team.rank, parameters)
    return total, [None if it.grad is None else it.grad.tolist() for it in parameters]


def lead_share_and_fail(team: Together) -> list[Any]:
    heard: list[Any] = [team.share(["a", "b", "c"])]
    if team.rank == 0:
        team.lead("load", "/x")
    else:
        heard.append(team.follow())
    team.agree(None)
    try:
        team.agree(RunError(FailureReason.LOSS_NOT_FINITE, "one's own", advice="Do.") if team.rank else None)
    except RunError as error:
        heard.append((error.reason.value, error.message, error.advice))
    return heard
