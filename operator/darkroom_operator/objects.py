"""Kubernetes objects as plain dicts: the types that the operator touches and how their metadata is read.

Dicts, not models: the API server is the validator, and an object of a newer release must pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from darkroom_api.kinds import KINDS
from darkroom_api.names import GROUP, LABEL_KIND, LABEL_NAME, LABEL_RUN, VERSION

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A type of objects as it stands in request paths."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


PARENTS: Final = tuple(Resource(GROUP, VERSION, kind.plural, kind.name) for kind in KINDS)
"""Our own kinds: what users apply, and what owns everything that the operator makes."""
JOBS: Final = Resource("batch", "v1", "jobs", "Job")
PODS: Final = Resource("", "v1", "pods", "Pod")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS: Final = Resource("", "v1", "events", "Event")

CHILDREN: Final = (JOBS, PODS, CONFIG_MAPS)
"""What is watched by the label of a run."""
WATCHED: Final = (*PARENTS, *CHILDREN)
_PARENTS_BY_KIND: Final = {resource.kind: resource for resource in PARENTS}


class Key(NamedTuple):
    """Names a parent, and with it the unit of work: one key is reconciled by one worker at a time."""

    kind: str
    namespace: str
    name: str

    @property
    def resource(self) -> Resource:
        return _PARENTS_BY_KIND[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class RunKey(NamedTuple):
    """Names a run; a parent that is deleted and applied again has another one."""

    namespace: str
    run: str


def metadata(item: Mapping[str, Any]) -> Object:
    """Return an object's metadata."""
    found: Object = item["metadata"]
    return found


def labels(item: Mapping[str, Any]) -> dict[str, str]:
    """Return an object's labels."""
    return metadata(item).get("labels") or {}


def own_key(resource: Resource, item: Mapping[str, Any]) -> Key:
    """Return the key of a parent."""
    return Key(resource.kind, metadata(item)["namespace"], metadata(item)["name"])


def parent_key(item: Mapping[str, Any]) -> Key | None:
    """Return the parent that a child names in its labels, if it is of a kind that there is."""
    kind, name = labels(item).get(LABEL_KIND), labels(item).get(LABEL_NAME)
    return Key(kind, metadata(item)["namespace"], name) if name and kind in _PARENTS_BY_KIND else None


def run_key(item: Mapping[str, Any]) -> RunKey | None:
    """Return the run that a child names in its label."""
    run = labels(item).get(LABEL_RUN)
    return RunKey(metadata(item)["namespace"], run) if run else None


def controller(item: Mapping[str, Any]) -> Object | None:
    """Return the owner reference of an object's controller."""
    for reference in metadata(item).get("ownerReferences") or ():
        if reference.get("controller"):
            found: Object = reference
            return found
    return None


def is_controlled_by(item: Mapping[str, Any], uid: str) -> bool:
    """Tell whether an object is ours: labels can be forged or copied, a controller's uid names one object for ever."""
    owner = controller(item)
    return owner is not None and owner.get("uid") == uid


def is_deleting(item: Mapping[str, Any]) -> bool:
    """Tell whether deletion has begun."""
    return "deletionTimestamp" in metadata(item)


def resource_version(item: Mapping[str, Any]) -> int:
    """Return the resource version; they are comparable integers within one resource type."""
    return int(metadata(item).get("resourceVersion") or 0)


def parse_time(text: str | None) -> datetime | None:
    """Parse a time as the API server writes it."""
    return datetime.fromisoformat(text) if text else None


def condition(item: Mapping[str, Any], kind: str) -> Object | None:
    """Return a condition of an object's status if it is True."""
    for entry in (item.get("status") or {}).get("conditions") or ():
        if entry.get("type") == kind and entry.get("status") == "True":
            found: Object = entry
            return found
    return None
