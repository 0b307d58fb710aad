"""Which epoch is best and when a run ends early: tables of losses and what follows from them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.progress import CheckpointRecord, EarlyStop
from darkroom_api.validation import Validation
from darkroom_trainer.choosing import best_epoch, early_stop, is_validated

losses = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def validation(**values: Any) -> Validation:
    return Validation.model_validate({"images": 1, **values})


def record(epoch: int, loss: float | None) -> CheckpointRecord:
    return CheckpointRecord(epoch=epoch, step=epoch, sha256="a" * 64, size_bytes=1, validation_loss=loss)


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ([], None),
        ([None, None], None),
        ([0.5, 0.3, 0.4], 2),
        ([0.5, 0.3, 0.3], 2),
        ([0.0, 0.3], 1),
        ([None, 0.3, None, 0.2], 4),
    ],
)
def test_the_best_epoch_is_the_first_of_the_least_loss(measured: list[float | None], best: int | None) -> None:
    assert best_epoch(record(epoch, loss) for epoch, loss in enumerate(measured, start=1)) == best
    assert best_epoch(record(epoch, loss) for epoch, loss in enumerate([-0.0, *measured])) == best  # before training


def test_every_so_many_epochs_and_the_last_are_validated() -> None:
    assert [epoch for epoch in range(8) if is_validated(validation(everyEpochs=3), epoch, epochs=7)] == [0, 3, 6, 7]
    assert not is_validated(None, 0, epochs=7)


@pytest.mark.parametrize(
    ("measured", "stopping", "stop"),
    [
        ([1.0, 0.9, 0.8, 0.9], {"patience": 2}, None),
        ([1.0, 0.9, 0.8, 0.9, 0.8], {"patience": 2}, (4, 2)),  # an equal loss is no new minimum
        ([1.0, 0.9, 0.95, 0.85, 0.9], {"patience": 2}, None),  # a new minimum starts the count again
        ([1.0, 1.1], {"patience": 1}, (1, 1)),  # what no epoch beats: the loss before training
        ([1.0, 0.95, 0.9], {"patience": 2, "minimumImprovement": 0.2}, (2, 2)),
        ([1.0, 0.9, 0.75], {"patience": 2, "minimumImprovement": 0.2}, None),  # small steps add up
        ([1.0], {"patience": 1}, None),
        ([], {"patience": 1}, None),
    ],
)
def test_patience(measured: list[float], stopping: dict[str, float], stop: tuple[int, int] | None) -> None:
    found = early_stop(validation(earlyStopping=stopping), dict(enumerate(measured)), epochs=10)
    assert found == (EarlyStop(epoch=stop[0], validations=stop[1]) if stop else None)


def test_after_the_last_epoch_nothing_is_early_and_without_the_field_nothing_stops() -> None:
    rising = {0: 1.0, 1: 2.0, 2: 3.0}
    assert early_stop(validation(earlyStopping={"patience": 2}), rising, epochs=3)
    assert early_stop(validation(earlyStopping={"patience": 2}), rising, epochs=2) is None
    assert early_stop(validation(), rising, epochs=3) is None
    assert early_stop(None, rising, epochs=3) is None


@given(losses, st.integers(1, 4))
def test_a_run_stops_at_the_first_epoch_that_may_stop_it(measured: list[float], patience: int) -> None:
    """Asked after each validation, as a run does and as a resumed one does with the same numbers."""
    asked = validation(earlyStopping={"patience": patience})
    curve = dict(enumerate(measured))
    stops = [early_stop(asked, {at: curve[at] for at in range(end + 1)}, epochs=100) for end in curve]
    first = next((stop for stop in stops if stop), None)
    if first is None:
        return
    assert first.validations == patience
    least = min(measured[: first.epoch + 1])
    assert measured.index(least) == first.epoch - patience
