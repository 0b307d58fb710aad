"""Snapshots for tests of decisions: objects as an API server would give them, and what a plan does to them."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from darkroom_api.kinds import TRAININGS
from darkroom_api.names import LABEL_KIND, LABEL_NAME, LABEL_RUN, child_name, run_id
from darkroom_api.progress import CheckpointRecord, Plan, Progress, Stage
from darkroom_api.result import RunResult, encode_result
from darkroom_operator.config import Config
from darkroom_operator.decide.snapshot import (
    CreateConfigMap,
    CreateJob,
    DeleteJob,
    Observation,
    PatchJob,
    Snapshot,
)
from darkroom_operator.decide.snapshot import Plan as Decision
from darkroom_operator.decide.training import decide
from darkroom_operator.objects import CONFIG_MAPS, JOBS, PARENTS, Key, Object, Resource
from darkroom_operator.slimming import slim
from tests.builders.specs import REQUIRED

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
CONFIG = Config(trainer_image="registry.example.com/trainer:1")
UID = "11111111-2222-3333-4444-555555555555"
RUN = run_id(UID)
CHILD = child_name("anna", RUN)
LORA_TRAININGS = PARENTS[0]
ANNA = Key(LORA_TRAININGS.kind, "studio", "anna")
SPECS = {kind.name: kind.spec for kind in TRAININGS}
JOB_UID = "job-uid"
STEPS = Plan(images=15, buckets=[], steps_per_epoch=10, total_steps=100)


def stamp(seconds: float = 0) -> str:
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def spec(resource: Resource = LORA_TRAININGS, **values: Any) -> Object:
    """A spec as the server stores it: with all defaults."""
    model = SPECS[resource.kind].model_validate(REQUIRED[resource.kind] | values)
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def training(
    resource: Resource = LORA_TRAININGS,
    *,
    status: Object | None = None,
    labels: Object | None = None,
    generation: int = 1,
    **values: Any,
) -> Object:
    return {
        "metadata": {
            "name": "anna",
            "namespace": "studio",
            "uid": UID,
            "generation": generation,
            "resourceVersion": "1",
            "labels": labels or {},
        },
        "spec": spec(resource, **values),
        "status": status or {"observedGeneration": -1},
    }


def job(
    *, conditions: tuple[tuple[str, str], ...] = (), age: float = 60, deleting: bool = False, **values: Any
) -> Object:
    """A Job with conditions as pairs of type and reason."""
    metadata: Object = {
        "name": CHILD,
        "namespace": "studio",
        "uid": JOB_UID,
        "creationTimestamp": stamp(-age),
        "labels": {LABEL_KIND: ANNA.kind, LABEL_NAME: "anna", LABEL_RUN: RUN},
    }
    if deleting:
        metadata["deletionTimestamp"] = stamp()
    found = [
        {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": stamp(-30)}
        for kind, reason in conditions
    ]
    status: Object = {"conditions": found}
    if not values.get("suspend"):
        status["startTime"] = stamp(-age)
    return {"metadata": metadata, "spec": {"suspend": False, "backoffLimit": 3} | values, "status": status}


def pod(
    name: str = "pod-a",
    *,
    state: Object | None = None,
    phase: str = "Running",
    age: float = 50,
    deleting: bool = False,
    started: bool = True,
    **status: Any,
) -> Object:
    metadata: Object = {
        "name": name,
        "namespace": "studio",
        "uid": f"uid-{name}",
        "creationTimestamp": stamp(-age),
        "labels": {LABEL_KIND: ANNA.kind, LABEL_NAME: "anna", LABEL_RUN: RUN},
        "ownerReferences": [{"kind": "Job", "name": CHILD, "uid": JOB_UID, "controller": True}],
    }
    if deleting:
        metadata["deletionTimestamp"] = stamp()
    found: Object = {"phase": phase, "podIP": "10.0.0.9"} | status
    if started:
        found["startTime"] = stamp(-age + 1)
    if state is not None:
        found["containerStatuses"] = [{"name": "trainer", "state": state}]
    return {"metadata": metadata, "status": found}


def running(name: str = "pod-a", *, age: float = 50, deleting: bool = False) -> Object:
    return pod(name, state={"running": {"startedAt": stamp(-age + 2)}}, age=age, deleting=deleting)


def ended(
    exit_code: int,
    name: str = "pod-a",
    *,
    result: RunResult | None = None,
    reason: str = "",
    age: float = 50,
    **status: Any,
) -> Object:
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Error" if exit_code else "Completed"),
        "startedAt": stamp(-age + 2),
        "finishedAt": stamp(-31),
        "message": encode_result(result).decode() if result else "",
    }
    return pod(name, state={"terminated": terminated}, phase="Failed" if exit_code else "Succeeded", age=age, **status)


def snapshot(resource: Resource = LORA_TRAININGS, **values: Any) -> Snapshot:
    given: Object = {"resource": resource, "training": training(resource), "run": RUN} | values
    return Snapshot(**given)


def result(**values: Any) -> RunResult:
    return RunResult(**({"run": RUN, "outcome": "Succeeded", "plan": STEPS, "step": 100, "epoch": 10} | values))


def record(epoch: int, *, samples: int = 0, loss: float | None = None) -> CheckpointRecord:
    return CheckpointRecord(
        epoch=epoch,
        step=10 * epoch,
        sha256=f"{epoch:064x}",
        size_bytes=9,
        num_samples=samples,
        validation_loss=loss,
    )


def observation(name: str = "pod-a", *, received: datetime = NOW, **values: Any) -> Observation:
    given: Object = {"run": RUN, "pod": name, "stage": Stage.TRAINING, "plan": STEPS, "updated": NOW} | values
    return Observation(name, Progress(**given), received)


def merged(value: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    kept = dict(value) if isinstance(value, dict) else {}
    for name, part in patch.items():
        if part is None:
            kept.pop(name, None)
        else:
            kept[name] = merged(kept.get(name), part)
    return kept


def apply(before: Snapshot, plan: Decision) -> Snapshot:
    """Return what is known after a plan was carried out."""
    after = before
    for action in plan.actions:
        match action:
            case CreateConfigMap(body):
                after = replace(after, config_map=slim(CONFIG_MAPS, _created(body)))
            case CreateJob(body):
                after = replace(after, job=slim(JOBS, _created(body)) | {"status": {}})
            case PatchJob(_, changes):
                assert after.job
                after = replace(after, job=merged(after.job, {"spec": changes}))
            case DeleteJob():
                after = replace(after, job=None)
    told = copy.deepcopy(after.training)
    told["status"] = merged(told["status"], plan.status_patch)
    return replace(after, training=told)


def _created(body: Object) -> Object:
    spec = body.get("spec")
    extra = {"spec": {"suspend": False} | spec} if spec else {}
    return body | {"metadata": body["metadata"] | {"uid": JOB_UID, "creationTimestamp": stamp()}} | extra


def decided(before: Snapshot, *, now: datetime = NOW) -> Snapshot:
    """Decide and apply once."""
    return apply(before, decide(before, CONFIG, now))


def status(after: Snapshot) -> Object:
    found: Object = after.training["status"]
    return found


def condition(after: Snapshot, kind: str) -> Object:
    return next((entry for entry in status(after).get("conditions", ()) if entry["type"] == kind), {})
