"""Builds the Job of a run and tells how a present Job must change.

The Job brings what an operator should not do by hand: retries with backoff, deadline, suspension, deletion, and never
two pods at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from darkroom_api.failures import NEVER_RETRIED, ExitCode
from darkroom_api.names import TRAINER_CONTAINER
from darkroom_api.training import TrainingSpec
from darkroom_operator.config import Config
from darkroom_operator.decide.children import KUEUE_PRIORITY, KUEUE_QUEUE, child_metadata, run_labels
from darkroom_operator.decide.pod_template import pod_template
from darkroom_operator.decide.snapshot import Snapshot
from darkroom_operator.objects import Object, condition, labels

_POD_FAILURE_RULES: Final[tuple[Object, ...]] = (
    {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": TRAINER_CONTAINER,
            "operator": "In",
            "values": sorted(int(code) for code in NEVER_RETRIED),
        },
    },
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {
        "action": "Ignore",
        "onExitCodes": {"containerName": TRAINER_CONTAINER, "operator": "In", "values": [int(ExitCode.PREEMPTED)]},
    },
)
"""Which ends of a pod fail the run at once, and which cost no retry; all others count against backoffLimit."""


def job(snapshot: Snapshot, spec: TrainingSpec, config: Config) -> Object:
    """Build the Job.

    It has no ttlSecondsAfterFinished yet: see `wanted_ttl`.
    """
    queue = {name: value for name, value in labels(snapshot.training).items() if name in {KUEUE_QUEUE, KUEUE_PRIORITY}}
    body: Object = {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": spec.backoff_limit,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [dict(rule) for rule in _POD_FAILURE_RULES]},
        "template": pod_template(snapshot, spec, config),
    }
    if spec.active_deadline_seconds is not None:
        body["activeDeadlineSeconds"] = spec.active_deadline_seconds
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(snapshot, labels=run_labels(snapshot) | queue),
        "spec": body,
    }


def is_queued_by_kueue(item: Mapping[str, Any]) -> bool:
    """Tell whether Kueue owns an object's suspension: it undoes each foreign write, at the price of a pod."""
    return KUEUE_QUEUE in labels(item)


def wanted_changes(present: Object, spec: TrainingSpec) -> Object:
    """Return the merge patch that brings an unfinished Job's spec to what the training's spec says now."""
    wanted = {"backoffLimit": spec.backoff_limit, "activeDeadlineSeconds": spec.active_deadline_seconds}
    if not is_queued_by_kueue(present):
        wanted["suspend"] = spec.suspend
    given = {"suspend": False} | present["spec"]
    return {name: value for name, value in wanted.items() if given.get(name) != value}


def wanted_ttl(present: Object, ttl: int | None) -> Object:
    """Return the merge patch for a finished Job whose end is recorded in the training's status.

    A Job gets its ttl only then. Otherwise Kubernetes could delete a finished Job while no operator is there to see
    how it ended, and the run would be done again.
    """
    return {} if present["spec"].get("ttlSecondsAfterFinished") == ttl else {"ttlSecondsAfterFinished": ttl}


def final_condition(present: Object) -> Object | None:
    """Return the condition that tells a Job's end, if it has ended."""
    return condition(present, "Complete") or condition(present, "Failed")
