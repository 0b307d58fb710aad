"""Where a run stands and what must be done about it, before any of it is put into words of a status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from darkroom_api.failures import NEVER_RETRIED, FailureReason
from darkroom_api.progress import EarlyStop
from darkroom_api.status import TERMINAL_PHASES, Failure, Phase, TrainingStatus
from darkroom_api.training import TrainingSpec
from darkroom_operator.config import Config
from darkroom_operator.decide import failures, waiting
from darkroom_operator.decide.children import config_map, run_plan
from darkroom_operator.decide.job import final_condition, is_queued_by_kueue, job, wanted_changes
from darkroom_operator.decide.pods import Attempt, live, strangers
from darkroom_operator.decide.snapshot import Action, CreateConfigMap, CreateJob, DeleteJob, PatchJob, Snapshot
from darkroom_operator.objects import Object, condition, is_deleting, metadata, parse_time

SETTLING: Final = timedelta(seconds=5)
"""How long a finished Job's last pod may be missing from the cache: its event travels on another watch."""
REFERENCE_CHECK: Final = 60.0
STARTING: Final = "The pod starts."
"""Said of a pod that is being created as well, since the difference would cost a write for every run."""


@dataclass(frozen=True)
class Outlook:
    """Where a run stands."""

    phase: Phase
    reason: str
    message: str
    is_progressing: bool = True
    actions: tuple[Action, ...] = ()
    failure: Failure | None = None
    """Why the run, or its last attempt, failed."""
    ended: datetime | None = None
    missing_reference: str = ""
    requeue_after: float | None = None


@dataclass(frozen=True)
class Situation:
    """What an outlook is made from."""

    snapshot: Snapshot
    spec: TrainingSpec
    status: TrainingStatus
    attempts: Sequence[Attempt]
    config: Config
    now: datetime

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None


def look(situation: Situation) -> Outlook:
    """Tell where a run stands that has not reached its end in the status yet."""
    snapshot = situation.snapshot
    if trouble := snapshot.trouble:
        if trouble.is_final:
            failure = failures.make(FailureReason.INVALID_SPEC, trouble.message)
            return failed(failure, ended=situation.now)
        return replace(
            _without_trouble(situation), reason=trouble.reason, message=trouble.message, is_progressing=False
        )
    return _without_trouble(situation)


def failed(failure: Failure, *, ended: datetime | None, actions: tuple[Action, ...] = ()) -> Outlook:
    """Return the outlook of a run that failed for good."""
    return Outlook(
        phase=Phase.FAILED,
        reason=failure.reason,
        message=failure.message,
        is_progressing=False,
        failure=failure,
        ended=ended,
        actions=actions,
    )


def unreadable(status: TrainingStatus, *, message: str) -> Outlook:
    """Return the outlook of a run whose Job goes on while its spec cannot be read."""
    return Outlook(
        phase=status.phase or Phase.PENDING,
        reason=FailureReason.INVALID_SPEC,
        message=message,
        is_progressing=False,
        failure=status.failure,
    )


def _without_trouble(situation: Situation) -> Outlook:
    if name := situation.spec.dataset.name:
        return _waiting(name)
    job = situation.snapshot.job
    outlook = _without_job(situation) if job is None else _with_job(situation, job)
    if outlook.phase not in TERMINAL_PHASES and (wait := waiting.for_end(situation.attempts)):
        return _bounded(outlook, wait, now=situation.now)
    return outlook


def _bounded(outlook: Outlook, wait: waiting.Wait, *, now: datetime) -> Outlook:
    """Return the outlook until a wait's bound, and from then on what a person should look at."""
    if left := wait.left(now):
        return replace(outlook, requeue_after=min(left, outlook.requeue_after or left))
    return replace(outlook, reason=wait.reason, message=wait.message, is_progressing=False)


def _waiting(name: str) -> Outlook:
    message = (
        f"spec.dataset.name: TrainingDataset {name!r} cannot be resolved, since this release knows no "
        "TrainingDatasets; give spec.dataset.uri with the prefix of the pictures instead."
    )
    return Outlook(
        phase=Phase.WAITING,
        reason="ReferencesNotResolved",
        message=message,
        is_progressing=False,
        missing_reference=message,
        requeue_after=REFERENCE_CHECK,
    )


def _without_job(situation: Situation) -> Outlook:
    snapshot, spec, last = situation.snapshot, situation.spec, situation.last
    if last and last.succeeded and last.ending and last.ending.result and last.ending.result.outcome == "Succeeded":
        return _succeeded(situation, last.ending.finished)
    if still := live(situation.attempts):
        message = f"Waiting for pod {still[-1].pod} of the deleted Job to end: two pods never write at once."
        return _paused(spec, Outlook(phase=Phase.PENDING, reason="PreviousPodStopping", message=message))
    if foreign := strangers(snapshot):
        return _beside(foreign[-1], recorded=situation.status.failure)
    if spec.suspend:
        return _suspended()
    return Outlook(
        phase=Phase.PENDING,
        reason="Creating",
        message="The Job is being created.",
        failure=situation.status.failure,
        actions=(*_plan_if_missing(situation), CreateJob(job(snapshot, spec, situation.config))),
    )


def _beside(stranger: Attempt, *, recorded: Failure | None) -> Outlook:
    return Outlook(
        phase=Phase.PENDING,
        reason="OrphanedPod",
        message=f"Pod {stranger.pod} has this run's label and no Job of the run controls it; two pods never write at "
        f"once. The run goes on when it has ended; to end it: 'kubectl delete pod {stranger.pod}'.",
        is_progressing=False,
        failure=recorded,
    )


def _paused(spec: TrainingSpec, outlook: Outlook) -> Outlook:
    return replace(outlook, reason="Suspending", message="The pod saves its state.") if spec.suspend else outlook


def _suspended() -> Outlook:
    return Outlook(
        phase=Phase.SUSPENDED,
        reason="Suspended",
        message="spec.suspend is true; set it to false to go on exactly where the run stopped.",
        is_progressing=False,
    )


def _succeeded(situation: Situation, ended: datetime | None) -> Outlook:
    reason, message = "Succeeded", "All epochs are trained and in the store."
    if stop := _early_stop(situation):
        epochs = situation.spec.training.epochs
        reason = "StoppedEarly"
        message = (
            f"Stopped early after epoch {stop.epoch} of {epochs}: {stop.validations} "
            f"validation{'s'[: stop.validations > 1]} in a row without improvement (spec.validation.earlyStopping). "
            "All trained epochs are in the store."
        )
    return Outlook(phase=Phase.SUCCEEDED, reason=reason, message=message, is_progressing=False, ended=ended)


def _early_stop(situation: Situation) -> EarlyStop | None:
    """Return why the last attempt left out epochs, if it says so and the spec allows it."""
    validation, last = situation.spec.validation, situation.last
    result = last.ending.result if last and last.ending else None
    stop = result.stopped_early if result else None
    is_allowed = validation is not None and validation.early_stopping is not None
    return stop if stop and is_allowed and stop.epoch < situation.spec.training.epochs else None


def _plan_if_missing(situation: Situation) -> tuple[Action, ...]:
    if situation.snapshot.config_map is not None:
        return ()
    return (CreateConfigMap(config_map(situation.snapshot, run_plan(situation.snapshot, situation.spec))),)


def _with_job(situation: Situation, present: Object) -> Outlook:
    if final := final_condition(present):
        return _ended(situation, present, final=final)
    if is_deleting(present):
        message = "The Job is being deleted; a new one follows when its pod has ended."
        return _paused(situation.spec, Outlook(phase=Phase.PENDING, reason="JobDeleting", message=message))
    is_queued = is_queued_by_kueue(present)
    changes = wanted_changes(present, situation.spec)
    actions: tuple[Action, ...] = (PatchJob(metadata(present)["name"], changes),) if changes else ()
    if not situation.spec.suspend:
        outlook = _active(situation, present, is_queued=is_queued)
        return replace(outlook, actions=(*_plan_if_missing(situation), *actions))
    if is_queued:  # Kueue would undo a suspension; without its Job it lets go
        actions = (DeleteJob(metadata(present)["name"], metadata(present)["uid"]),)
    return replace(_suspending(situation, present), actions=actions)


def _suspending(situation: Situation, present: Object) -> Outlook:
    status = present.get("status") or {}
    is_over = condition(present, "Suspended") and not status.get("active") and not status.get("terminating")
    if is_over and not live(situation.attempts):
        return _suspended()
    is_running = any(attempt.running_since for attempt in live(situation.attempts))
    return Outlook(
        phase=Phase.RUNNING if is_running else Phase.PENDING, reason="Suspending", message="The pod saves its state."
    )


def _ended(situation: Situation, present: Object, *, final: Object) -> Outlook:
    last = situation.last
    ended = parse_time((present.get("status") or {}).get("completionTime") or final.get("lastTransitionTime"))
    is_complete = final["type"] == "Complete"
    is_told = last is not None and last.is_finished and last.succeeded == is_complete
    age = situation.now - ended if ended else SETTLING
    if not is_told and age < SETTLING and final.get("reason") != "DeadlineExceeded":
        left = (SETTLING - age).total_seconds()
        return Outlook(
            phase=situation.status.phase or Phase.PENDING,
            reason="Finishing",
            message="The Job has ended.",
            failure=situation.status.failure,
            requeue_after=min(left, SETTLING.total_seconds()),
        )
    if is_complete:
        return _succeeded(situation, ended)
    return failed(failures.of_job(final, last=last, recorded=situation.status.failure), ended=ended)


def _active(situation: Situation, present: Object, *, is_queued: bool) -> Outlook:
    if present["spec"].get("suspend") and is_queued:
        return Outlook(
            phase=Phase.QUEUED,
            reason="Queued",
            message="Kueue has not admitted the Job yet; its Workload says why.",
            is_progressing=False,
            failure=situation.status.failure,
        )
    last = situation.last
    if last is None or (last.is_finished and not last.succeeded):
        return _between_attempts(situation, present, last)
    recorded = situation.status.failure
    if last.ending:
        return _finishing(recorded)
    if last.is_running:
        reason = "Stopping" if last.is_deleting else "Running"
        return Outlook(phase=Phase.RUNNING, reason=reason, message=f"Pod {last.pod} runs.", failure=recorded)
    return _starting(situation, last)


def _starting(situation: Situation, last: Attempt) -> Outlook:
    recorded = situation.status.failure
    if last.hindrance:
        return Outlook(
            phase=Phase.PENDING,
            reason=last.hindrance.reason,
            message=last.hindrance.message,
            is_progressing=False,
            failure=recorded,
        )
    bundle = situation.spec.storage.ca_bundle
    wait = waiting.for_container(last, ca_bundle=bundle.config_map_name if bundle else None)
    starting = Outlook(phase=Phase.PENDING, reason="Starting", message=STARTING, failure=recorded)
    return _bounded(starting, wait, now=situation.now)


def _finishing(failure: Failure | None, message: str = "The trainer has ended.") -> Outlook:
    return Outlook(phase=Phase.RUNNING, reason="Finishing", message=message, failure=failure)


def _between_attempts(situation: Situation, present: Object, last: Attempt | None) -> Outlook:
    active_since = parse_time((present.get("status") or {}).get("startTime"))
    if last and (active_since is None or last.created < active_since):
        last = None  # it ended since the run was suspended, which is no failure
    failure = (failures.of_attempt(last) if last else None) or situation.status.failure
    if present["spec"].get("suspend"):
        return Outlook(phase=Phase.PENDING, reason="Resuming", message="The Job is being resumed.", failure=failure)
    if last and failure and failure.exit_code in NEVER_RETRIED:
        return _finishing(failure, f"The trainer ended: {failure.message}")
    outlook = Outlook(phase=Phase.PENDING, reason="Starting", message=STARTING, failure=failure)
    if last and failure:
        more = "" if failure.reason == FailureReason.PREEMPTED else ", while backoffLimit allows"
        message = f"The last attempt ended: {failure.message} The next one starts by itself{more}."
        outlook = replace(outlook, reason=failure.reason, message=message)
    heard = situation.status.progress.last_updated_time if situation.status.progress else None
    attempted = max(situation.status.attempts, len(situation.attempts))
    wait = waiting.for_pod(present, situation.attempts, attempted=attempted, heard=heard)
    return _bounded(outlook, wait, now=situation.now)
