"""Decides about a training, of whichever kind: the one pure function that everything else serves."""

from __future__ import annotations

from datetime import datetime

from pydantic import ValidationError

from darkroom_api.base import explain
from darkroom_api.failures import FailureReason
from darkroom_api.kinds import TRAININGS
from darkroom_api.status import TERMINAL_PHASES, Phase, TrainingStatus
from darkroom_operator.config import Config
from darkroom_operator.decide import failures
from darkroom_operator.decide.children import run_plan
from darkroom_operator.decide.conditions import conditions
from darkroom_operator.decide.job import final_condition, wanted_ttl
from darkroom_operator.decide.notes import notes
from darkroom_operator.decide.outlook import Outlook, Situation, failed, look, unreadable
from darkroom_operator.decide.pods import Attempt, attempts
from darkroom_operator.decide.reading import read_known
from darkroom_operator.decide.reports import Reports, Sources, collect
from darkroom_operator.decide.snapshot import Action, DeleteJob, PatchJob, Plan, PodAddress, Snapshot
from darkroom_operator.decide.status import count_attempts, patch_between, read_status
from darkroom_operator.objects import is_deleting, metadata

_SPECS = {kind.name: kind.spec for kind in TRAININGS}


def decide(snapshot: Snapshot, config: Config, now: datetime) -> Plan:
    """Return what to write so that the cluster comes to what the training asks for.

    After the plan is carried out, deciding again gives an empty plan until something else changes.
    """
    if is_deleting(snapshot.training):
        return Plan()  # the garbage collector does the rest
    now = now.replace(microsecond=0)
    status = read_status(snapshot.training)
    if status.phase in TERMINAL_PHASES:
        return _after_the_end(snapshot, status)
    try:
        spec = read_known(_SPECS[snapshot.resource.kind], snapshot.training["spec"])
    except ValidationError as error:
        return _invalid(snapshot, status, problem=explain(error, "spec"), now=now)
    return _going_on(Situation(snapshot, spec, status, attempts=attempts(snapshot), config=config, now=now))


def _after_the_end(snapshot: Snapshot, status: TrainingStatus) -> Plan:
    """Keep what was recorded: only the generation follows, and the Job's deletion is left to its ttl."""
    followed = status.model_copy(update={"observed_generation": snapshot.generation})
    actions: tuple[Action, ...] = ()
    job = snapshot.job
    if job and not is_deleting(job):
        if final_condition(job) is None:
            actions = (DeleteJob(metadata(job)["name"], metadata(job)["uid"]),)
        elif changes := wanted_ttl(job, snapshot.training["spec"].get("ttlSecondsAfterFinished")):
            actions = (PatchJob(metadata(job)["name"], changes),)
    return Plan(actions=actions, status_patch=patch_between(status, followed))


def _invalid(snapshot: Snapshot, status: TrainingStatus, *, problem: str, now: datetime) -> Plan:
    """Fail a run whose spec the server let through but the models do not.

    With a Job it has been understood before, so it is this operator that is too old: the run goes on, and that shows.
    """
    if snapshot.job is not None or status.job_name:
        message = f"{problem}\nThe run goes on; this release of the operator cannot read its spec."
        outlook = unreadable(status, message=message)
    else:
        outlook = failed(failures.make(FailureReason.INVALID_SPEC, problem), ended=now)
    after = _standing(snapshot, status, outlook, now=now)
    return Plan(events=notes(status, after), status_patch=patch_between(status, after))


def _going_on(situation: Situation) -> Plan:
    snapshot, status, now = situation.snapshot, situation.status, situation.now
    outlook = look(situation)
    plan = run_plan(snapshot, situation.spec)
    reports = collect(
        Sources(status, situation.attempts, snapshot.observation),
        plan,
        phase=outlook.phase,
        interval=situation.config.progress_interval,
        now=now,
    )
    counted, newest = count_attempts(status, list(situation.attempts))
    after = _standing(snapshot, status, outlook, now=now).model_copy(
        update={
            "attempts": counted,
            "last_attempt": newest,
            "start_time": status.start_time or _first_start(situation),
            "plan": reports.plan,
            "progress": reports.progress,
            "checkpoints": reports.checkpoints,
            "best_epoch": reports.best_epoch,
            "memory": reports.memory,
            "output": str(plan.prefix),
        }
    )
    return Plan(
        actions=outlook.actions,
        events=notes(status, after),
        status_patch=patch_between(status, after),
        requeue_after=_sooner(outlook, reports),
        poll=_whom_to_ask(situation, outlook),
    )


def _standing(snapshot: Snapshot, status: TrainingStatus, outlook: Outlook, *, now: datetime) -> TrainingStatus:
    """Return the status with everything that follows from where the run stands."""
    has_job = snapshot.job is not None or bool(outlook.actions)
    standing = conditions(
        outlook,
        status.conditions,
        generation=snapshot.generation,
        now=now,
        is_past_references=outlook.failure is None or outlook.failure.reason != FailureReason.INVALID_SPEC,
    )
    return status.model_copy(
        update={
            "observed_generation": snapshot.generation,
            "phase": outlook.phase,
            "conditions": standing,
            "job_name": snapshot.child if has_job else status.job_name,
            "failure": outlook.failure,
            "completion_time": outlook.ended,
        }
    )


def _first_start(situation: Situation) -> datetime | None:
    starts = [attempt.running_since for attempt in situation.attempts if attempt.running_since]
    return min(starts) if starts else None


def _sooner(outlook: Outlook, reports: Reports) -> float | None:
    delays = [delay for delay in (outlook.requeue_after, reports.write_after) if delay is not None]
    return min(delays) if delays else None


def _whom_to_ask(situation: Situation, outlook: Outlook) -> PodAddress | None:
    last: Attempt | None = situation.attempts[-1] if situation.attempts else None
    if outlook.phase != Phase.RUNNING or last is None or not last.is_running or not last.ip:
        return None
    return PodAddress(last.pod, last.ip, situation.snapshot.run)
