"""Builds what a run consists of: the ConfigMap with its plan, and the labels and ownership that children share."""

from __future__ import annotations

from typing import Final

from darkroom_api.names import API_VERSION, LABEL_KIND, LABEL_NAME, LABEL_RUN, PLAN_FILE
from darkroom_api.plan import RunPlan
from darkroom_api.training import TrainingSpec
from darkroom_operator.decide.snapshot import Snapshot
from darkroom_operator.objects import Object

KUEUE_QUEUE: Final = "kueue.x-k8s.io/queue-name"
KUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"


def run_plan(snapshot: Snapshot, spec: TrainingSpec) -> RunPlan:
    """Return what the pod is told."""
    return RunPlan(
        kind=snapshot.resource.kind,
        name=snapshot.name,
        namespace=snapshot.namespace,
        uid=snapshot.uid,
        run=snapshot.run,
        spec=spec,
    )


def run_labels(snapshot: Snapshot) -> dict[str, str]:
    """Return the labels by which children are watched and found."""
    return {
        LABEL_KIND: snapshot.resource.kind,
        LABEL_NAME: snapshot.name,
        LABEL_RUN: snapshot.run,
        "app.kubernetes.io/managed-by": "darkroom",
    }


def child_metadata(snapshot: Snapshot, *, labels: dict[str, str]) -> Object:
    """Return the metadata of a child that is garbage-collected with its training."""
    return {
        "name": snapshot.child,
        "namespace": snapshot.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": snapshot.resource.kind,
                "name": snapshot.name,
                "uid": snapshot.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def config_map(snapshot: Snapshot, plan: RunPlan) -> Object:
    """Build the ConfigMap that the pod reads its plan from.

    It is immutable: every attempt of a run sees the same plan, also after an upgrade of the operator.
    """
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(snapshot, labels=run_labels(snapshot)),
        "immutable": True,
        "data": {PLAN_FILE: plan.model_dump_json(by_alias=True, exclude_none=True, indent=1)},
    }
