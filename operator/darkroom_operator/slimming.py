"""Cut objects down to what decisions read: a thousand runs should cost megabytes, not a copy of etcd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from darkroom_operator.objects import CONFIG_MAPS, JOBS, PARENTS, PODS, Object, Resource

_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "labels",
    "creationTimestamp",
    "deletionTimestamp",
    "ownerReferences",
)
_JOB_SPEC: Final = ("suspend", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
_POD_STATUS: Final = ("phase", "podIP", "startTime", "reason", "message", "conditions", "containerStatuses")


def _pick(item: Object, names: tuple[str, ...]) -> Object:
    return {name: item[name] for name in names if name in item}


def _parent(item: Object) -> Object:
    return {"spec": item.get("spec") or {}, "status": item.get("status") or {}}


def _job(item: Object) -> Object:
    status = {name: value for name, value in (item.get("status") or {}).items() if name != "uncountedTerminatedPods"}
    return {"spec": _pick(item["spec"], _JOB_SPEC), "status": status}


def _pod(item: Object) -> Object:
    return {"status": _pick(item.get("status") or {}, _POD_STATUS)}


_SLIMMERS: Final[dict[Resource, Callable[[Object], Object]]] = {
    **dict.fromkeys(PARENTS, _parent),
    JOBS: _job,
    PODS: _pod,
    CONFIG_MAPS: lambda _: {},
}


def slim(resource: Resource, item: Object) -> Object:
    """Return the part of an object that the operator keeps."""
    return {"metadata": _pick(item["metadata"], _METADATA), **_SLIMMERS[resource](item)}
