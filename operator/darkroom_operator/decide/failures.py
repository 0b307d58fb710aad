"""The taxonomy: from exit code, termination message, pod and Job to a reason, a message and advice."""

from __future__ import annotations

import re
from typing import Final

from darkroom_api.failures import ADVICE, ExitCode, FailureReason
from darkroom_api.status import Failure
from darkroom_operator.decide.pods import Attempt, Ending
from darkroom_operator.objects import Object

_BY_EXIT_CODE: Final[dict[int, tuple[FailureReason, str]]] = {
    ExitCode.DATA: (
        FailureReason.DATASET_REJECTED,
        "The dataset or the base model was rejected; the pod's log says why",
    ),
    ExitCode.NO_INPUT: (FailureReason.NOT_FOUND, "A bucket, key or file does not exist; the pod's log names it"),
    ExitCode.UNAVAILABLE: (FailureReason.STORAGE_UNAVAILABLE, "The object store did not answer"),
    ExitCode.SOFTWARE: (FailureReason.INTERNAL_ERROR, "The trainer ended by an error of its own"),
    ExitCode.PREEMPTED: (FailureReason.PREEMPTED, "The pod was asked to stop and saved its state"),
    ExitCode.NO_PERMISSION: (FailureReason.ACCESS_DENIED, "The object store refused the credentials"),
    ExitCode.CONFIG: (FailureReason.INVALID_SPEC, "The spec is wrong; the pod's log names the field"),
    ExitCode.OUT_OF_MEMORY: (FailureReason.ACCELERATOR_OUT_OF_MEMORY, "The accelerator ran out of memory"),
    ExitCode.LOSS_NOT_FINITE: (FailureReason.LOSS_NOT_FINITE, "The loss became NaN or infinite"),
}
_MESSAGE_LENGTH: Final = 2048


def make(reason: FailureReason, message: str, *, exit_code: int | None = None, pod: str | None = None) -> Failure:
    """Make a failure with the usual advice."""
    return Failure(
        reason=reason, message=message[:_MESSAGE_LENGTH], advice=ADVICE[reason], exit_code=exit_code, pod=pod
    )


def of_attempt(attempt: Attempt) -> Failure | None:
    """Tell why an attempt failed; None if it did not."""
    if not attempt.is_finished or attempt.succeeded:
        return None
    ending = attempt.ending
    if found := _outgrown(attempt) or (ending and _told_by_trainer(attempt.pod, ending)):
        return found
    if attempt.disruption:
        exit_code = ending.exit_code if ending else None
        return make(FailureReason.PREEMPTED, attempt.disruption, exit_code=exit_code, pod=attempt.pod)
    if ending:
        return _by_exit_code(ending.exit_code, pod=attempt.pod)
    return make(FailureReason.PREEMPTED, "The pod went away before its trainer ended.", pod=attempt.pod)


def of_job(failed: Object, *, last: Attempt | None, recorded: Failure | None) -> Failure:
    """Tell why a Job failed for good; that it goes on by itself is said of no such end.

    Args:
        failed: The Job's condition Failed.
        last: The last attempt, if it is still known.
        recorded: What the status says of the last attempt, for when its pod is gone.
    """
    found = _cause(failed, last=last, recorded=recorded)
    if found.reason != FailureReason.PREEMPTED:
        return found
    return found.model_copy(
        update={
            "reason": FailureReason.INTERNAL_ERROR,
            "message": f"{found.message.rstrip('.')}; no retry was left."[:_MESSAGE_LENGTH],
            "advice": "Find out what takes the pods away, and apply under a new name with a higher backoffLimit.",
        }
    )


def _cause(failed: Object, *, last: Attempt | None, recorded: Failure | None) -> Failure:
    reason = failed.get("reason") or ""
    message = failed.get("message") or "The Job failed."
    if reason == "DeadlineExceeded":
        return make(FailureReason.DEADLINE_EXCEEDED, "The run was active for longer than activeDeadlineSeconds.")
    if last and (failure := of_attempt(last)):
        return failure
    # With the pod gone, the Job still names the exit code that its policy matched.
    if found := re.search(r"pod (?:\S+/)?(\S+) failed with exit code (\d+)", message):
        return _by_exit_code(int(found[2]), pod=found[1])
    return recorded or make(FailureReason.INTERNAL_ERROR, f"{reason}: {message}" if reason else message)


def _outgrown(attempt: Attempt) -> Failure | None:
    """Tell which of its own limits the pod was killed for, if it was."""
    if attempt.overuse:
        return make(FailureReason.SCRATCH_FULL, attempt.overuse, pod=attempt.pod)
    ending = attempt.ending
    if not ending or ending.reason != "OOMKilled" or (ending.result and ending.result.failure):
        return None
    return make(
        FailureReason.HOST_OUT_OF_MEMORY,
        "The container was killed since it used more memory than compute.resources.limits.memory allows.",
        exit_code=ending.exit_code,
        pod=attempt.pod,
    )


def _told_by_trainer(pod: str, ending: Ending) -> Failure | None:
    failure = ending.result.failure if ending.result else None
    if failure is None:
        return None
    return Failure(
        reason=failure.reason, message=failure.message, advice=failure.advice, exit_code=ending.exit_code, pod=pod
    )


def _by_exit_code(exit_code: int, *, pod: str) -> Failure:
    if exit_code in _BY_EXIT_CODE:
        reason, message = _BY_EXIT_CODE[exit_code]
        return make(reason, f"{message}.", exit_code=exit_code, pod=pod)
    how = f"was killed by signal {exit_code - 128}" if 128 < exit_code < 160 else f"ended with exit code {exit_code}"
    return make(FailureReason.INTERNAL_ERROR, f"The trainer {how} without a word.", exit_code=exit_code, pod=pod)
