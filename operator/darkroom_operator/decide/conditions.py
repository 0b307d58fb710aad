"""Conditions as kstatus, Helm, Argo CD and Flux read them.

Measured rules: Ready stands from the first reconcile and is True only at success; Stalled stands only after a final
failure, since whoever sees it gives up at once; there is no Reconciling, since left True it would beat Ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple

from darkroom_api.status import Condition, ConditionType, Phase
from darkroom_operator.decide.outlook import Outlook

State = Literal["True", "False", "Unknown"]
_MESSAGE_LENGTH: Final = 4096


class _Wanted(NamedTuple):
    type: str
    status: State
    reason: str
    message: str


def conditions(
    outlook: Outlook, before: Sequence[Condition], *, generation: int, now: datetime, is_past_references: bool = False
) -> list[Condition]:
    """Return all conditions; transition times change only where a status flips."""
    known = {entry.type: entry for entry in before}
    ours = {str(kind) for kind in ConditionType}
    wanted = _wanted(outlook, is_past_references=is_past_references)
    made = [_condition(entry, known.get(entry.type), generation=generation, now=now) for entry in wanted]
    return made + [entry for entry in before if entry.type not in ours]


def _wanted(outlook: Outlook, *, is_past_references: bool) -> list[_Wanted]:
    reason, message = outlook.reason, outlook.message
    phase = outlook.phase
    if phase == Phase.FAILED and outlook.failure:
        message = f"{outlook.failure.message} {outlook.failure.advice}"
    found = [
        _of(ConditionType.READY, phase == Phase.SUCCEEDED, reason, message),
        _of(ConditionType.COMPLETE, phase == Phase.SUCCEEDED, reason, ""),
        _of(ConditionType.FAILED, phase == Phase.FAILED, reason, message if phase == Phase.FAILED else ""),
        _of(ConditionType.SUSPENDED, phase == Phase.SUSPENDED, reason, ""),
        _of(ConditionType.PROGRESSING, outlook.is_progressing, reason, message),
    ]
    if outlook.missing_reference:
        found.append(_Wanted(ConditionType.REFERENCES_RESOLVED, "False", "NotFound", outlook.missing_reference))
    elif is_past_references:
        found.append(_Wanted(ConditionType.REFERENCES_RESOLVED, "True", "Resolved", ""))
    if phase == Phase.FAILED:
        found.append(_Wanted(ConditionType.STALLED, "True", reason, message))
    return found


def _of(kind: ConditionType, holds: bool, reason: str, message: str) -> _Wanted:
    return _Wanted(kind, "True" if holds else "False", reason, message[:_MESSAGE_LENGTH])


def _condition(wanted: _Wanted, before: Condition | None, *, generation: int, now: datetime) -> Condition:
    flipped = before is None or before.status != wanted.status
    return Condition(
        type=wanted.type,
        status=wanted.status,
        reason=wanted.reason,
        message=wanted.message,
        last_transition_time=now if before is None or flipped else before.last_transition_time,
        observed_generation=generation,
    )
