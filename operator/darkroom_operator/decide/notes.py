"""Which Kubernetes events a change of the status is worth: transitions only, so that a quiet run posts none."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom_api.status import Condition, ConditionType, Phase, TrainingStatus
from darkroom_operator.decide.snapshot import Note


def notes(before: TrainingStatus, after: TrainingStatus) -> tuple[Note, ...]:
    """Return the events of a transition."""
    ready = _ready(after.conditions)
    if after.phase is None or ready is None:
        return ()
    previous = _ready(before.conditions)
    # Ready stays False from Running to Pending and back, so the pod tells one such transition from the next.
    pod = after.last_attempt.pod if after.last_attempt else ""
    cause = f"{after.phase} {ready.reason} {previous.last_transition_time if previous else ''} {pod}"
    if before.phase != after.phase:
        is_bad = after.phase == Phase.FAILED or _is_stuck(after)
        return (_note(ready, is_bad=is_bad, cause=cause),)
    if _is_stuck(after) and previous and previous.reason != ready.reason:
        return (_note(ready, is_bad=True, cause=cause),)
    return ()


def _note(ready: Condition, *, is_bad: bool, cause: str) -> Note:
    return Note("Warning" if is_bad else "Normal", ready.reason, ready.message[:1024], cause)


def _ready(conditions: Sequence[Condition]) -> Condition | None:
    return next((entry for entry in conditions if entry.type == ConditionType.READY), None)


def _is_stuck(status: TrainingStatus) -> bool:
    """Tell whether somebody has to do something before the run goes on."""
    progressing = next((entry for entry in status.conditions if entry.type == ConditionType.PROGRESSING), None)
    wanted = {Phase.PENDING, Phase.WAITING}
    return status.phase in wanted and progressing is not None and progressing.status == "False"
