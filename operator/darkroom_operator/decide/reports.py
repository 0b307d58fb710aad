"""Takes what pods report into the status: plan, progress, checkpoints. What is once recorded is never lost again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from darkroom_api.layout import checkpoint_directory, sample_file, samples_directory, weights_file
from darkroom_api.memory import Memory
from darkroom_api.plan import RunPlan
from darkroom_api.progress import CheckpointRecord, Plan, Progress, Stage
from darkroom_api.status import MAXIMUM_CHECKPOINTS, CheckpointStatus, Phase, ProgressStatus, TrainingStatus
from darkroom_operator.decide.pods import Attempt, Ending
from darkroom_operator.decide.snapshot import Observation

MAXIMUM_SAMPLES: Final = 256
"""Addresses of sample pictures that a status lists, over all checkpoints; those of older epochs lie in the store."""
_BEFORE_TRAINING: Final = frozenset({Stage.STARTING, Stage.FETCHING, Stage.INSPECTING, Stage.CACHING, Stage.RESUMING})


@dataclass(frozen=True)
class Reports:
    """What is known of a run's work."""

    plan: Plan | None
    progress: ProgressStatus | None
    checkpoints: list[CheckpointStatus]
    best_epoch: int | None
    memory: Memory | None
    write_after: float | None = None
    """Seconds after which held-back progress may be written."""


@dataclass(frozen=True)
class Sources:
    """Where reports come from: the status so far, the pods' last words, and the running pod's own account."""

    status: TrainingStatus
    attempts: Sequence[Attempt]
    observation: Observation | None

    @property
    def heard(self) -> Observation | None:
        """The observation, if it is of the newest attempt."""
        last = self.attempts[-1] if self.attempts else None
        return self.observation if self.observation and last and self.observation.pod == last.pod else None

    @property
    def last_word(self) -> Ending | None:
        """The end of the newest attempt, if it ended and left a result."""
        ending = self.attempts[-1].ending if self.attempts else None
        return ending if ending and ending.result else None


def collect(sources: Sources, plan: RunPlan, *, phase: Phase, interval: float, now: datetime) -> Reports:
    """Merge all sources.

    Args:
        sources: Everything that is known.
        plan: The run, for addresses in the store.
        phase: Where the run stands now.
        interval: Least seconds between two writes that only move the steps on.
        now: The time.
    """
    heard, word = sources.heard, sources.last_word
    told = sources.status.plan
    if heard and heard.progress.plan:
        told = _filled_up(told, heard.progress.plan)
    if word and word.result and word.result.plan:
        told = _filled_up(told, word.result.plan)
    best = _best_epoch(sources, epochs=plan.spec.training.epochs)
    checkpoints = _checkpoints(sources, plan, best=best)
    latest = _progress(sources, told, epochs=plan.spec.training.epochs)
    if phase == Phase.SUCCEEDED and latest:
        latest = _completed(latest)
    elif phase != Phase.RUNNING and latest:
        latest = latest.model_copy(update={"steps_per_second": None, "estimated_remaining_seconds": None})
    recorded = sources.status.progress
    memory, status = _memory(sources), sources.status
    before = (status.plan, status.checkpoints, status.best_epoch, status.memory)
    is_news = (told, checkpoints, best, memory) != before or phase != Phase.RUNNING
    held_back = None if is_news else _held_back(recorded, latest, interval=interval, now=now)
    if held_back is not None or _says_the_same(recorded, latest):
        latest = recorded
    return Reports(told, latest, checkpoints, best, memory, held_back)


def _filled_up(before: Plan | None, plan: Plan) -> Plan:
    """Keep what a plan does not tell: a last word has no room for lists, a new pod has measured no speed yet."""
    if before is None:
        return plan
    names = ("buckets", "advice", "estimated_seconds")
    return plan.model_copy(update={name: getattr(before, name) for name in names if not getattr(plan, name)})


def _memory(sources: Sources) -> Memory | None:
    """Return what the newest attempt says of its memory; it says nothing before it trains."""
    word, heard = sources.last_word, sources.heard
    told = [word.result.memory if word and word.result else None, heard.progress.memory if heard else None]
    return next((memory for memory in told if memory), sources.status.memory)


def _held_back(
    recorded: ProgressStatus | None, latest: ProgressStatus | None, *, interval: float, now: datetime
) -> float | None:
    """Return for how long a change must wait, so that steps do not flood etcd; None: it need not."""
    if recorded is None or latest is None or recorded.epoch != latest.epoch or _says_the_same(recorded, latest):
        return None
    since = (now - recorded.last_updated_time).total_seconds()
    return interval - since if 0 <= since < interval else None


def _says_the_same(recorded: ProgressStatus | None, latest: ProgressStatus | None) -> bool:
    """Tell whether a report differs at most in its time and the estimates that follow from time alone."""
    if recorded is None or latest is None:
        return recorded is latest
    names = ("stage", "epoch", "step", "total_steps", "percentage", "loss", "validation_loss", "learning_rate")
    same = all(getattr(recorded, name) == getattr(latest, name) for name in names)
    return same and (recorded.steps_per_second is None) == (latest.steps_per_second is None)


def _progress(sources: Sources, plan: Plan | None, *, epochs: int) -> ProgressStatus | None:
    latest = sources.status.progress
    if heard := sources.heard:
        latest = _resumed(latest, _of_report(heard.progress, plan, received=heard.received))
    word = sources.last_word
    if not word or not word.result:
        return latest
    result, total = word.result, plan.total_steps if plan else 0
    latest = latest or ProgressStatus(
        stage=Stage.STARTING, epoch=0, step=0, total_steps=0, percentage=0, last_updated_time=word.finished or _never()
    )
    epoch = result.epoch if result.outcome == "Succeeded" else min(result.epoch + 1, epochs)
    if not result.step:
        epoch = latest.epoch
    step = result.step or latest.step
    return latest.model_copy(
        update={"epoch": epoch, "step": step, "total_steps": total, "percentage": _percentage(step, total)}
    )


def _resumed(recorded: ProgressStatus | None, told: ProgressStatus) -> ProgressStatus:
    """Keep the recorded steps while a new pod prepares itself: it counts from 0 until it has read the saved state."""
    if recorded is None or told.step or told.stage not in _BEFORE_TRAINING:
        return told
    update = {name: getattr(told, name) for name in ("stage", "total_steps", "last_updated_time")}
    update["percentage"] = _percentage(recorded.step, told.total_steps)
    return recorded.model_copy(update=update | {"steps_per_second": None, "estimated_remaining_seconds": None})


def _of_report(report: Progress, plan: Plan | None, *, received: datetime) -> ProgressStatus:
    total = plan.total_steps if plan else 0
    return ProgressStatus(
        stage=report.stage,
        epoch=report.epoch,
        step=report.step,
        total_steps=total,
        percentage=_percentage(report.step, total),
        steps_per_second=_rounded(report.steps_per_second),
        estimated_remaining_seconds=report.estimated_remaining_seconds,
        loss=_rounded(report.loss),
        validation_loss=_rounded(report.validation_loss),
        learning_rate=report.learning_rate,
        last_updated_time=received,
    )


def _completed(progress: ProgressStatus) -> ProgressStatus:
    return progress.model_copy(
        update={
            "stage": Stage.DONE,
            "step": progress.total_steps or progress.step,
            "percentage": 100,
            "steps_per_second": None,
            "estimated_remaining_seconds": None,
        }
    )


def _percentage(step: int, total: int) -> int:
    return min(100, 100 * step // total) if total else 0


def _rounded(value: float | None) -> float | None:
    """Round to what a person reads in a column; the store has the exact numbers."""
    return None if value is None else float(f"{value:.6g}")


def _never() -> datetime:
    return datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _checkpoints(sources: Sources, plan: RunPlan, *, best: int | None) -> list[CheckpointStatus]:
    """Unite all records by epoch: a pod that resumes knows at first less than its predecessor did."""
    merged = {entry.epoch: entry for entry in sources.status.checkpoints}
    for record in _records(sources):
        if record.epoch <= plan.spec.training.epochs:
            merged[record.epoch] = _address(record, plan)
    epochs = sorted(merged)[-MAXIMUM_CHECKPOINTS:]
    if best in merged and best not in epochs:
        epochs[0] = best  # the one that people look for, however old
    return _bounded([merged[epoch] for epoch in epochs])


def _bounded(checkpoints: list[CheckpointStatus]) -> list[CheckpointStatus]:
    """Keep the newest pictures' addresses only: all of them can be more than an object in etcd may weigh."""
    listed, kept = 0, list[CheckpointStatus]()
    for entry in reversed(checkpoints):
        listed += len(entry.samples)
        kept.append(entry if listed <= MAXIMUM_SAMPLES else entry.model_copy(update={"samples": []}))
    return kept[::-1]


def _best_epoch(sources: Sources, *, epochs: int) -> int | None:
    """Return what the newest attempt says: from the store it knows all that earlier ones found, once it has looked."""
    word, heard = sources.last_word, sources.heard
    told = [
        word.result.best_epoch if word and word.result else None,
        heard.progress.best_epoch if heard else None,
    ]
    return next((epoch for epoch in told if epoch and epoch <= epochs), sources.status.best_epoch)


def _records(sources: Sources) -> Iterable[CheckpointRecord]:
    for attempt in sources.attempts:
        if attempt.ending and attempt.ending.result:
            yield from attempt.ending.result.checkpoints
    if sources.heard:
        yield from sources.heard.progress.checkpoints


def _address(record: CheckpointRecord, plan: RunPlan) -> CheckpointStatus:
    spec = plan.spec
    file = weights_file(plan.name, epoch=record.epoch, suffix=spec.checkpoints.suffix)
    weights = plan.prefix.join(checkpoint_directory(record.epoch), file)
    names = [sample_file(prompt, seed) for prompt in range(len(spec.samples.prompts)) for seed in spec.samples.seeds]
    directory = plan.prefix.join(samples_directory(record.epoch))
    return CheckpointStatus(
        epoch=record.epoch,
        step=record.step,
        uri=str(weights),
        sha256=record.sha256,
        size_bytes=record.size_bytes,
        validation_loss=_rounded(record.validation_loss),
        samples=[str(directory.join(name)) for name in names[: record.num_samples]],
    )
