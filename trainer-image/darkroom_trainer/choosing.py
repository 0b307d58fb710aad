"""Which epoch is the best, and whether training goes on: pure functions over the recorded validation losses.

Nothing here is kept between two calls, so a resumed run decides as the undisturbed one would have. `validating`
measures the losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from darkroom_api.progress import CheckpointRecord, EarlyStop
from darkroom_api.validation import EarlyStopping, Validation


def is_validated(validation: Validation | None, epoch: int, *, epochs: int) -> bool:
    """Tell whether an epoch ends with a validation; epoch 0 is before training."""
    return validation is not None and (epoch == epochs or epoch % validation.every_epochs == 0)


def best_epoch(checkpoints: Iterable[CheckpointRecord]) -> int | None:
    """Return the epoch of the least validation loss, from 1, the earliest of equals; None if none was measured."""
    measured = [(it.validation_loss, it.epoch) for it in checkpoints if it.epoch and it.validation_loss is not None]
    return min(measured)[1] if measured else None


def early_stop(validation: Validation | None, losses: Mapping[int, float], *, epochs: int) -> EarlyStop | None:
    """Return why the run ends after its last validation; None while it goes on, or if no epoch would be left out.

    Args:
        validation: What the spec asks for.
        losses: All validation losses so far, by epoch in ascending order.
        epochs: Epochs that the spec asks for.
    """
    if validation is None or validation.early_stopping is None or not losses:
        return None
    last, waited = max(losses), _without_improvement(losses.values(), validation.early_stopping)
    is_over = waited >= validation.early_stopping.patience and last < epochs
    return EarlyStop(epoch=last, validations=waited) if is_over else None


def _without_improvement(losses: Iterable[float], spec: EarlyStopping) -> int:
    """Return how many of the last losses brought no new minimum; the loss before training is the first to beat."""
    least, waited = math.inf, 0
    for loss in losses:
        is_better = loss < least - spec.minimum_improvement
        least, waited = (loss, 0) if is_better else (least, waited + 1)
    return waited
