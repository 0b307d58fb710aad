"""What ``watch`` tells a person: pure functions from one state of a training, or two, to lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from darkroom_api.memory import Adaptation
from darkroom_api.status import CheckpointStatus, ConditionType, Phase, ProgressStatus, TrainingStatus
from darkroom_cli.text import count, duration_text, size_text

PERCENT_BETWEEN_LINES = 5
"""Where no live bar is drawn, a line is printed each time the progress has grown by this much."""


def state_text(status: TrainingStatus, *, epochs: int) -> str:
    """Return the state in one line: stage, epoch, step, loss, speed, time to the end."""
    progress = status.progress
    if status.phase is not Phase.RUNNING or progress is None:
        return ": ".join(filter(None, (status.phase or Phase.PENDING, waiting_text(status))))
    return "  ".join(_progress_parts(progress, epochs=epochs))


def waiting_text(status: TrainingStatus) -> str:
    """Return why nothing moves, as the condition Ready or Progressing says it."""
    if status.phase in {Phase.SUCCEEDED, Phase.FAILED}:
        return ""
    told = {condition.type: condition for condition in status.conditions}
    for kind in (ConditionType.REFERENCES_RESOLVED, ConditionType.PROGRESSING, ConditionType.READY):
        condition = told.get(kind)
        if condition and condition.status != "True" and condition.message:
            return condition.message if condition.reason == status.phase else f"{condition.reason}: {condition.message}"
    return ""


def _progress_parts(progress: ProgressStatus, *, epochs: int) -> Iterator[str]:
    yield progress.stage
    if progress.total_steps:
        yield f"epoch {progress.epoch}/{epochs}"
        yield f"step {progress.step}/{progress.total_steps} ({progress.percentage} %)"
    if progress.loss is not None:
        yield f"loss {progress.loss:.4f}"
    if progress.validation_loss is not None:
        yield f"validation {progress.validation_loss:.4f}"
    if progress.steps_per_second is not None:
        yield f"{progress.steps_per_second:.2f} steps/s"
    if progress.estimated_remaining_seconds is not None:
        yield f"ETA {duration_text(progress.estimated_remaining_seconds)}"


def checkpoint_text(checkpoint: CheckpointStatus, *, best: int | None) -> str:
    """Return a checkpoint in one line."""
    text = f"checkpoint of epoch {checkpoint.epoch}: {checkpoint.uri} ({size_text(checkpoint.size_bytes)})"
    validation = validation_text(checkpoint, best=best)
    return f"{text}, validation {validation}" if validation else text


def validation_text(checkpoint: CheckpointStatus, *, best: int | None) -> str:
    """Return a checkpoint's validation loss, and whether it is the best epoch's; empty if it was not measured."""
    if checkpoint.validation_loss is None:
        return ""
    return f"{checkpoint.validation_loss:.4f}{' (best)' if checkpoint.epoch == best else ''}"


def milestones(before: TrainingStatus | None, now: TrainingStatus) -> Iterator[str]:
    """Yield a line for each thing that has happened since, worth keeping on the screen."""
    old = before or TrainingStatus()
    if now.plan and not old.plan:
        buckets = ", ".join(f"{bucket.images}×{bucket.width}x{bucket.height}" for bucket in now.plan.buckets)
        yield (
            f"{now.plan.images} pictures in buckets {buckets or 'none'}: {now.plan.steps_per_epoch} steps in an epoch, "
            f"{now.plan.total_steps} in all"
            + (f"; {count(held, 'other picture')} for validation" if (held := now.plan.validation_images) else "")
        )
        yield from (f"advice: {sentence}" for sentence in now.plan.advice)
    seconds = now.plan.estimated_seconds if now.plan else None
    if seconds is not None and (old.plan is None or old.plan.estimated_seconds is None):
        yield f"all steps take about {duration_text(seconds)} at the measured speed"
    if (adaptation := _adaptation(now)) and adaptation != _adaptation(old):
        yield f"memory lacked, so the run goes on with {', '.join(_done_otherwise(adaptation))}"
    if before and now.attempts > old.attempts > 0:
        yield f"attempt {now.attempts} begins"
    if now.failure and now.failure != old.failure and now.phase is not Phase.FAILED:
        yield f"the last attempt ended: {now.failure.reason}: {now.failure.message}"
    known = {checkpoint.uri for checkpoint in old.checkpoints}
    yield from (checkpoint_text(it, best=now.best_epoch) for it in now.checkpoints if it.uri not in known)


def _adaptation(status: TrainingStatus) -> Adaptation | None:
    return status.memory.adaptation if status.memory else None


def _done_otherwise(adaptation: Adaptation) -> Iterator[str]:
    if adaptation.micro_batch:
        yield f"{count(adaptation.micro_batch, 'picture')} at once"
    if adaptation.gradient_checkpointing:
        yield "activations computed twice"
    if adaptation.resolution:
        yield f"pictures of resolution {adaptation.resolution}"
    if adaptation.tiled_latents:
        yield "pictures encoded in tiles"


def is_worth_a_line(before: TrainingStatus | None, now: TrainingStatus) -> bool:
    """Tell whether the state has moved enough to be printed again where no live bar is drawn."""
    if before is None or _standing(before) != _standing(now):
        return True
    if before.progress is None or now.progress is None:
        return before.progress is not now.progress
    moved = now.progress.percentage - before.progress.percentage
    return (
        before.progress.stage != now.progress.stage
        or before.progress.epoch != now.progress.epoch
        or abs(moved) >= PERCENT_BETWEEN_LINES
    )


def _standing(status: TrainingStatus) -> tuple[Phase, str]:
    return status.phase or Phase.PENDING, waiting_text(status)


def final_lines(status: TrainingStatus, *, namespace: str) -> Iterator[str]:
    """Yield what is to be said at the end."""
    seconds = (
        f" after {duration_text((status.completion_time - status.start_time).total_seconds())}"
        if status.completion_time and status.start_time
        else ""
    )
    yield f"{status.phase}{seconds}"
    if status.phase is Phase.SUCCEEDED:
        yield from _results(status)
    if status.failure and status.phase is Phase.FAILED:
        yield f"{status.failure.reason}: {status.failure.message}"
        yield f"what to do: {status.failure.advice}"
        if status.failure.pod:
            yield f"its log: kubectl logs --namespace {namespace} {status.failure.pod}"


def _results(status: TrainingStatus) -> Iterator[str]:
    ready = next((condition for condition in status.conditions if condition.type == ConditionType.READY), None)
    if ready and ready.reason != status.phase and ready.message:
        yield ready.message
    if status.best_epoch is not None:
        best = next((it for it in status.checkpoints if it.epoch == status.best_epoch), None)
        loss = f", validation loss {best.validation_loss:.4f}" if best and best.validation_loss is not None else ""
        yield f"the best epoch is {status.best_epoch}{loss}{f': {best.uri}' if best else ''}"
    if status.output:
        yield f"everything lies in {status.output}"
