"""Reads the status that stands, makes the one that should, and tells the difference as a merge patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from darkroom_api.status import AttemptStatus, TrainingStatus
from darkroom_operator.decide.pods import Attempt
from darkroom_operator.objects import Object

_FIELDS = {field.alias or name: name for name, field in TrainingStatus.model_fields.items()}


def read_status(training: Mapping[str, Any]) -> TrainingStatus:
    """Read a status; what cannot be read is dropped field by field, so that a latched phase survives anything."""
    raw = training.get("status") or {}
    try:
        return TrainingStatus.model_validate(raw)
    except ValidationError as error:
        broken = {str(problem["loc"][0]) for problem in error.errors()}
        kept = {name: value for name, value in raw.items() if name not in broken and _FIELDS.get(name) not in broken}
        return TrainingStatus.model_validate(kept)


def patch_between(before: TrainingStatus, after: TrainingStatus) -> Object:
    """Return the JSON merge patch (RFC 7386) from one status to another."""
    return _merge_patch(_dump(before), _dump(after))


def count_attempts(status: TrainingStatus, attempts: list[Attempt]) -> tuple[int, AttemptStatus | None]:
    """Count the pods that a node took over, each once, over restarts of the operator and deletions of pods."""
    counted, newest = status.attempts, status.last_attempt
    for attempt in attempts:
        if attempt.started is None or (newest and not _is_newer(attempt, newest)):
            continue
        counted, newest = counted + 1, AttemptStatus(pod=attempt.pod, created=attempt.created)
    return counted, newest


def _is_newer(attempt: Attempt, than: AttemptStatus) -> bool:
    # Times are whole seconds. Of two pods of one second the names decide, so that no pod is ever counted twice.
    return (attempt.created, attempt.pod) > (than.created, than.pod)


def _dump(status: TrainingStatus) -> Object:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _merge_patch(before: Object, after: Object) -> Object:
    patch: Object = {name: None for name in before if name not in after}
    for name, value in after.items():
        known = before.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            if inner := _merge_patch(known, value):
                patch[name] = inner
        elif name not in before or known != value:
            patch[name] = value
    return patch
