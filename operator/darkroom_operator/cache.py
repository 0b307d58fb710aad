"""What the operator knows of the cluster: kept up by watches and own writes, replaced by full lists.

Three dangers shape it. A watch may miss a deletion for ever, so lists replace what is cached. An own write is known
before its event arrives, so an older event must not undo it. A pod's last words are gone with the pod, so the last
state of deleted pods is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from darkroom_api.names import child_name, run_id
from darkroom_api.progress import Progress
from darkroom_operator.decide.snapshot import Observation, Snapshot
from darkroom_operator.objects import (
    CONFIG_MAPS,
    JOBS,
    PARENTS,
    PODS,
    WATCHED,
    Key,
    Object,
    Resource,
    RunKey,
    controller,
    is_controlled_by,
    metadata,
    own_key,
    parent_key,
    resource_version,
    run_key,
)
from darkroom_operator.slimming import slim

DEPARTED_PODS: Final = 4
"""Deleted pods of a run whose last state is kept."""
TOMBSTONES: Final = 20_000
"""Uids of deleted objects that are remembered, so that a list begun before the deletion does not bring them back."""

Name = tuple[str, str]


@dataclass
class _Run:
    """What is known of a run besides its parent."""

    children: dict[Resource, dict[str, Object]]
    departed: dict[str, Object]
    observation: Observation | None = None


class Cache:
    """All watched objects, by name and by run. Methods that change it return the keys to look at again."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[Name, Object]] = {resource: {} for resource in WATCHED}
        self._runs: dict[RunKey, _Run] = {}
        self._tombstones: dict[str, None] = {}

    def put(self, resource: Resource, item: Object) -> set[Key]:
        """Take in an object unless something newer is known."""
        data = metadata(item)
        name = (data["namespace"], data["name"])
        known = self._objects[resource].get(name)
        if data["uid"] in self._tombstones or (known and resource_version(known) >= resource_version(item)):
            return set()
        if known and run_key(known) != run_key(item):
            self._forget(resource, name)
        self._keep(resource, slim(resource, item))
        return _keys(resource, item)

    def adopt(self, resource: Resource, item: Object) -> set[Key]:
        """Take in an object that was just asked for by name: whoever took it for deleted was wrong."""
        self._tombstones.pop(metadata(item)["uid"], None)
        return self.put(resource, item)

    def remove(self, resource: Resource, item: Object) -> set[Key]:
        """Take note that an object is gone."""
        data = metadata(item)
        name = (data["namespace"], data["name"])
        self._tombstones[data["uid"]] = None
        while len(self._tombstones) > TOMBSTONES:
            self._tombstones.pop(next(iter(self._tombstones)))
        known = self._objects[resource].get(name)
        if known and metadata(known)["uid"] != data["uid"]:
            return set()
        self._forget(resource, name)
        if resource == PODS:
            self._bury(item)
        if resource in PARENTS:
            self._runs.pop(RunKey(data["namespace"], run_id(data["uid"])), None)
        return _keys(resource, item)

    def replace(self, resource: Resource, items: Iterable[Object], *, version: int, namespace: str | None) -> set[Key]:
        """Make a full list of a type the truth, except where something newer than the list is known."""
        listed = {(metadata(item)["namespace"], metadata(item)["name"]): item for item in items}
        changed: set[Key] = set()
        for name, known in list(self._objects[resource].items()):
            in_scope = namespace is None or name[0] == namespace
            if in_scope and name not in listed and resource_version(known) <= version:
                changed |= self.remove(resource, known)
        for item in listed.values():
            changed |= self.put(resource, item)
        return changed

    def observe(self, key: RunKey, pod: str, *, progress: Progress, received: datetime) -> bool:
        """Keep a pod's report; tell whether it says anything new."""
        run = self._runs.get(key)
        if run is None:
            return False
        before = run.observation
        run.observation = Observation(pod, progress, received)
        if before is None or before.pod != pod:
            return True
        return before.progress.model_copy(update={"updated": progress.updated}) != progress

    def parents(self) -> Iterator[tuple[Key, Object]]:
        """Return all parents by their keys."""
        for resource in PARENTS:
            for name, item in self._objects[resource].items():
                yield Key(resource.kind, *name), item

    def count(self, resource: Resource) -> int:
        """Return how many objects of a type are known."""
        return len(self._objects[resource])

    def snapshot(self, key: Key) -> Snapshot | None:
        """Return everything that a decision about a training depends on, or None if there is no such training."""
        training = self._parent(key)
        if training is None:
            return None
        uid = metadata(training)["uid"]
        run = run_id(uid)
        child = child_name(key.name, run)
        known = self._runs.get(RunKey(key.namespace, run)) or _Run({}, {})
        job = _ours(known.children.get(JOBS, {}).get(child), uid)
        pods = known.children.get(PODS, {}).values()
        departed = tuple(pod for pod in known.departed.values() if _is_of_job(pod, child))
        return Snapshot(
            resource=key.resource,
            training=training,
            run=run,
            job=job,
            config_map=_ours(known.children.get(CONFIG_MAPS, {}).get(child), uid),
            pods=tuple(pod for pod in pods if _is_of_job(pod, child)),
            strangers=tuple(pod for pod in pods if not _is_of_job(pod, child)),
            departed_pods=departed,
            observation=known.observation,
        )

    def _keep(self, resource: Resource, item: Object) -> None:
        data = metadata(item)
        self._objects[resource][data["namespace"], data["name"]] = item
        if resource not in PARENTS and (key := run_key(item)):
            self._run(key).children.setdefault(resource, {})[data["name"]] = item

    def _forget(self, resource: Resource, name: Name) -> None:
        known = self._objects[resource].pop(name, None)
        if known is None or resource in PARENTS or not (key := run_key(known)):
            return
        run = self._runs.get(key)
        if run is None:
            return
        run.children.get(resource, {}).pop(name[1], None)
        if not any(run.children.values()) and not run.departed:
            del self._runs[key]

    def _bury(self, pod: Object) -> None:
        key, parent = run_key(pod), parent_key(pod)
        if key is None or parent is None or self._parent(parent) is None:
            return  # the parent went first, and nobody will ask
        departed = self._run(key).departed
        departed[metadata(pod)["name"]] = slim(PODS, pod)
        while len(departed) > DEPARTED_PODS:
            departed.pop(next(iter(departed)))

    def _parent(self, key: Key) -> Object | None:
        return self._objects[key.resource].get((key.namespace, key.name))

    def _run(self, key: RunKey) -> _Run:
        return self._runs.setdefault(key, _Run({}, {}))


def _keys(resource: Resource, item: Object) -> set[Key]:
    key = own_key(resource, item) if resource in PARENTS else parent_key(item)
    return {key} if key else set()


def _ours(item: Object | None, uid: str) -> Object | None:
    return item if item and is_controlled_by(item, uid) else None


def _is_of_job(pod: Object, job: str) -> bool:
    owner = controller(pod)
    return owner is not None and owner.get("kind") == "Job" and owner.get("name") == job
