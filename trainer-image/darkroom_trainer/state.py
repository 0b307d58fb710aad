"""What a run needs to go on exactly where it was: weights, the optimizer's state, and a few numbers.

Plain tensors and JSON, nothing pickled: a state comes back from a bucket that others may write to. Everything else
(order, noise, captions, learning rate) follows from the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from darkroom_api.failures import FailureReason
from darkroom_api.memory import AS_ASKED, Adaptation
from darkroom_trainer import optimizer_state
from darkroom_trainer.errors import RunError

ADAPTER: Final = "adapter.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
AVERAGES: Final = "averages.safetensors"
"""Only where the run keeps a moving average."""
NUMBERS: Final = "state.json"
FORMAT: Final = 2
"""1 lacked the optimizer's numbers and was written by trainers whose steps drew other noise."""


@dataclass
class Position:
    """Where a run is."""

    step: int = 0
    """Optimizer steps done."""
    closed_epoch: int = -1
    """Last epoch whose checkpoint and samples were handed over; 0 stands for what comes before training."""
    steps: list[int] = field(default_factory=list)
    """Steps since the last checkpoint, from 1, with their losses and learning rates."""
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    validated_epochs: list[int] = field(default_factory=list)
    """Epochs with a validation, since the run began, with their losses."""
    validation_losses: list[float] = field(default_factory=list)

    @property
    def validations(self) -> dict[int, float]:
        """Return all validation losses by epoch, oldest first."""
        return dict(zip(self.validated_epochs, self.validation_losses, strict=True))

    def record_validation(self, epoch: int, loss: float) -> None:
        """Keep an epoch's validation loss."""
        self.validated_epochs.append(epoch)
        self.validation_losses.append(loss)

    def record(self, loss: float, learning_rate: float) -> None:
        """Count a step."""
        self.step += 1
        self.steps.append(self.step)
        self.losses.append(loss)
        self.learning_rates.append(learning_rate)

    def forget_steps(self) -> None:
        """Start a new list of steps, after a checkpoint took the last one."""
        self.steps, self.losses, self.learning_rates = [], [], []


@dataclass(frozen=True)
class Snapshot:
    """A state in host memory, apart from the run that goes on."""

    weights: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    numbers: Mapping[str, Any]
    averages: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def write(self, directory: Path) -> list[Path]:
        """Write the state's files and return them."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.weights), directory / ADAPTER)
        save_file(dict(self.moments), directory / OPTIMIZER)
        (directory / NUMBERS).write_text(json.dumps(self.numbers))
        names = [ADAPTER, OPTIMIZER, NUMBERS]
        if self.averages:
            save_file(dict(self.averages), directory / AVERAGES)
            names.append(AVERAGES)
        return [directory / name for name in names]


def capture(
    position: Position,
    *,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: Mapping[str, Any],
    averages: Mapping[str, torch.Tensor],
    adaptation: Adaptation = AS_ASKED,
    inputs: str,
) -> Snapshot:
    """Copy everything that a resume needs.

    Args:
        position: Where the run is.
        parameters: The trained weights.
        optimizer: Their optimizer.
        scaler: State of the loss scaler; empty without one.
        averages: The weights' moving averages; empty without any.
        adaptation: What is done for lack of memory: it changes the order of sums.
        inputs: Fingerprint of base model and pictures; a resume with others is refused.
    """
    return Snapshot(
        weights={name: _copy(it) for name, it in parameters.items()},
        moments={name: _copy(it) for name, it in optimizer_state.tensors(optimizer).items()},
        numbers={
            "format": FORMAT,
            "inputs": inputs,
            "scaler": dict(scaler),
            "position": asdict(position),
            "adaptation": adaptation.model_dump(by_alias=True, exclude_none=True),
            "optimizer": optimizer_state.numbers(optimizer),
        },
        averages={name: _copy(it) for name, it in averages.items()},
    )


def load(
    directory: Path,
    *,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    averages: Mapping[str, torch.Tensor],
    inputs: str,
) -> tuple[Position, dict[str, Any], Adaptation]:
    """Fill weights, optimizer and averages from a saved state; return the other things that it holds.

    These are the position, the loss scaler's state and what was done for lack of memory.

    Raises:
        RunError: The state was made from other pictures or another base model, or cannot be read.
    """
    with _told_if_unreadable(directory):
        numbers = json.loads((directory / NUMBERS).read_text())
        _check_format(numbers["format"], directory)
        weights, moments = load_file(directory / ADAPTER), load_file(directory / OPTIMIZER)
        averaged = load_file(directory / AVERAGES) if averages else {}
        position = Position(**numbers["position"])
        adaptation = Adaptation.model_validate(numbers.get("adaptation", {}))
    if numbers["inputs"] != inputs:
        raise RunError(
            FailureReason.DATASET_REJECTED,
            "spec.dataset, spec.baseModel or spec.network.initialWeights: the pictures, captions, masks, base model or "
            "initial weights changed since this run began, so it cannot go on exactly",
            advice="Apply the training under a new name, or put the earlier files back.",
        )
    with _told_if_unreadable(directory), torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
        for name, average in averages.items():
            average.copy_(averaged[name])
        optimizer_state.fill(optimizer, moments, numbers["optimizer"])
    return position, numbers["scaler"], adaptation


@contextmanager
def _told_if_unreadable(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            FailureReason.INTERNAL_ERROR,
            f"the saved state {directory.name} cannot be read: {error}",
            advice="Delete this state below the run's prefix to go on from an older one.",
        ) from error


def _check_format(given: object, directory: Path) -> None:
    if given != FORMAT:
        raise RunError(
            FailureReason.INVALID_SPEC,
            f"the saved state {directory.name} has format {given}, this trainer reads {FORMAT}: another version of the "
            "trainer began this run, and only that one can go on exactly",
            advice="Apply the training under a new name, or finish this run with the trainer image that began it.",
        )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
