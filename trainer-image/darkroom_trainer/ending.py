"""How the process ends: from an exception to an exit code and the termination message."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from darkroom_api.failures import ADVICE, EXIT_CODES, ExitCode, FailureReason
from darkroom_api.result import RunFailure, RunResult, encode_result
from darkroom_trainer.errors import RunError, StopRequested
from darkroom_trainer.logs import scrub
from darkroom_trainer.reporting import Reporter

LOG: Final = logging.getLogger(__name__)
_OURS: Final = "darkroom_"
_MESSAGE: Final = 1024
_ADVICE: Final = 512


@dataclass(frozen=True)
class Ending:
    """An exit code and the last word."""

    code: ExitCode
    result: RunResult


def judge(error: BaseException | None, *, run: str, reporter: Reporter | None, secrets: Sequence[str] = ()) -> Ending:
    """Return how the process ends.

    Args:
        error: What ended it; None if the run is complete.
        run: The run id, empty if not even that is known.
        reporter: What the run had come to.
        secrets: Texts that must not leave the process.
    """
    result = RunResult(run=run, outcome="Succeeded")
    if reporter is not None:
        told = reporter.snapshot()
        result = result.model_copy(
            update={
                "step": told.step,
                "epoch": reporter.epochs_done,
                "plan": told.plan,
                "checkpoints": told.checkpoints,
                "best_epoch": told.best_epoch,
                "stopped_early": reporter.early_stop,
                "memory": reporter.memory,
            }
        )
    if error is None:
        return Ending(ExitCode.DONE, result)
    if isinstance(error, StopRequested):
        return Ending(ExitCode.PREEMPTED, result.model_copy(update={"outcome": "Preempted"}))
    known = error if isinstance(error, RunError) else _bug(error)
    failure = RunFailure(
        reason=known.reason, message=scrub(known.message, secrets)[:_MESSAGE], advice=known.advice[:_ADVICE]
    )
    return Ending(EXIT_CODES[known.reason], result.model_copy(update={"outcome": "Failed", "failure": failure}))


def _bug(error: BaseException) -> RunError:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _OURS in frame.filename]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno} in {frame.name})" for frame in (ours or frames)[-1:])
    advice = None
    if isinstance(error, OSError) and error.errno == 28:  # ENOSPC
        advice = "Raise compute.scratchSize, or give the node more disk."
    text = " ".join(str(error).split())[:300]
    return RunError(FailureReason.INTERNAL_ERROR, f"{type(error).__name__}: {text}{where}", advice=advice)


def announce(ending: Ending, error: BaseException | None) -> None:
    """Write the end into the log, with the traceback if it is a bug."""
    failure = ending.result.failure
    if failure is None:
        LOG.info("%s at step %d; exit code %d", ending.result.outcome, ending.result.step, ending.code)
        return
    if error is not None and not isinstance(error, RunError):
        LOG.error("A bug ended the run", exc_info=error)
    LOG.error("%s: %s", failure.reason.value, failure.message)
    LOG.error("%s (exit code %d)", failure.advice or ADVICE[failure.reason], ending.code)


def leave_message(result: RunResult, path: Path) -> None:
    """Write the termination message where the kubelet looks for it; without such a place the log must do."""
    try:
        path.write_bytes(encode_result(result))
    except OSError as error:
        LOG.warning("No termination message: %s cannot be written (%s)", path, error.strerror)
