"""How a run ends early: each exception carries the reason, the message and the advice that the status will show."""

from __future__ import annotations

from darkroom_api.failures import ADVICE, FailureReason


class RunError(Exception):
    """A failure with a reason that a user can act on.

    Args:
        reason: One word for the cause; it decides the exit code and whether the run is tried again.
        message: What happened: path, what was given, what is allowed.
        advice: What to do, in one sentence; by default the reason's usual one.
    """

    def __init__(self, reason: FailureReason, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.advice = advice or ADVICE[reason]


class StopRequested(Exception):  # noqa: N818 - an order, not an error
    """SIGTERM came, the step is finished and the state is saved and uploaded."""
