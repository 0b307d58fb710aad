"""Carries plans out. The only module that writes to the cluster.

Every write may have been made before by a process that did not live to see the answer. So names are deterministic, a
conflict with an object of ours is success, and what is gone is gone.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Awaitable
from datetime import datetime
from http import HTTPStatus
from typing import Final, assert_never

from darkroom_api.names import API_VERSION, LABEL_RUN
from darkroom_operator.cache import Cache
from darkroom_operator.client import UNREACHABLE, ApiError, KubeClient, Preconditions
from darkroom_operator.decide.snapshot import (
    Action,
    CreateConfigMap,
    CreateJob,
    DeleteJob,
    Note,
    PatchJob,
    Snapshot,
    Trouble,
)
from darkroom_operator.metrics import Metrics
from darkroom_operator.objects import (
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    PODS,
    Key,
    Object,
    Resource,
    controller,
    is_controlled_by,
    metadata,
)

logger = logging.getLogger(__name__)
_REFUSALS: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})
_FROM_SPEC: Final = re.compile(
    r"spec\.(backoffLimit|activeDeadlineSeconds)\b|spec\.template\.spec\."
    r"(nodeSelector|tolerations|priorityClassName|serviceAccountName|terminationGracePeriodSeconds|volumes"
    r"|containers\[0\]\.(resources|env))\b"
)
"""Fields of a Job that come from the training's spec; the others come from the operator's configuration."""
_POLICIES: Final = ("ValidatingAdmissionPolicy", "admission webhook", "quota")
"""Words of refusals that are somebody's policy: policies and quotas change."""
_UNREADABLE: Final = "quantities must match"
"""What the server says of a quantity that it cannot even decode; it names no field then."""
COMPONENT: Final = "darkroom-operator"
Call = Awaitable[Object | None]


class RefusedError(Exception):
    """A write was refused in a way that the training's status should tell."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


class Executor:
    """Writes through a client and into the cache, so that the next decision knows of it before any watch does."""

    def __init__(self, client: KubeClient, cache: Cache, metrics: Metrics) -> None:
        self._client = client
        self._cache = cache
        self._metrics = metrics

    async def act(self, key: Key, action: Action) -> None:
        """Carry out an action.

        Raises:
            RefusedError: The API server does not want it.
            ApiError: It could not be asked.
        """
        match action:
            case CreateConfigMap(body):
                await self._create(CONFIG_MAPS, body)
            case CreateJob(body):
                await self._create(JOBS, body)
            case PatchJob(name, spec):
                await self._patch_job(key, name, spec=spec)
            case DeleteJob(name, uid):
                await self._delete_job(key, name, uid=uid)
            case _:
                assert_never(action)

    async def look_for_pods(self, snapshot: Snapshot) -> None:
        """Take in the run's pods as they are now: one that no watch has told of may still write."""
        listing = await self._client.list_all(PODS, snapshot.namespace, selector=f"{LABEL_RUN}={snapshot.run}")
        for pod in listing.items:
            self._cache.put(PODS, pod)

    async def post(self, snapshot: Snapshot, note: Note, *, now: datetime) -> None:
        """Post an event under a name that follows from its cause: posted twice it is still one."""
        body = _event(snapshot, note, now=now)
        try:
            await self._write("create", EVENTS, self._client.create(EVENTS, body))
        except ApiError as error:
            if error.status == UNREACHABLE:
                raise
            if error.status != HTTPStatus.CONFLICT:  # an event is a courtesy; the status is the record
                logger.warning("cannot post an event for %s: %s", snapshot.key, error)

    async def write_status(self, snapshot: Snapshot, patch: Object) -> bool:
        """Patch the status that the decision saw; False if it is no longer that one."""
        precondition = {"resourceVersion": metadata(snapshot.training)["resourceVersion"]}
        body = {"metadata": precondition, "status": patch}
        call = self._client.patch(snapshot.resource, snapshot.namespace, snapshot.name, body=body, subresource="status")
        try:
            self._cache.put(snapshot.resource, await self._write("patch", snapshot.resource, call))
        except ApiError as error:
            if error.status not in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
                raise
            await self._refresh(snapshot.resource, snapshot.training)
            return False
        return True

    async def _create(self, resource: Resource, body: Object) -> None:
        try:
            created = await self._write("create", resource, self._client.create(resource, body))
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise _refusal(error, f"{resource.kind}NotCreated", resource) from error
            self._cache.adopt(resource, await self._adopt(resource, body))
        else:
            self._cache.put(resource, created)

    async def _adopt(self, resource: Resource, body: Object) -> Object:
        """Return the object that already has the name, if it is ours."""
        data = metadata(body)
        present = await self._client.get(resource, data["namespace"], data["name"])
        owner = controller(body)
        assert owner is not None, "every child has a controller"
        if not is_controlled_by(present, owner["uid"]):
            message = f"A {resource.kind} named {data['name']!r} that is not Darkroom's is in the way; delete it."
            raise RefusedError(Trouble("NameConflict", message, is_final=False))
        return present

    async def _patch_job(self, key: Key, name: str, *, spec: Object) -> None:
        call = self._client.patch(JOBS, key.namespace, name, body={"spec": spec})
        try:
            self._cache.put(JOBS, await self._write("patch", JOBS, call))
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise _refusal(error, "JobNotChanged", JOBS, may_be_final=False) from error
            self._forget_job(key)

    async def _delete_job(self, key: Key, name: str, *, uid: str) -> None:
        call = self._client.delete(JOBS, key.namespace, name, preconditions=Preconditions(uid))
        try:
            await self._write("delete", JOBS, call)
            self._cache.put(JOBS, await self._client.get(JOBS, key.namespace, name))
        except ApiError as error:
            # A conflict tells of a successor: another uid.
            if error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                raise
            self._forget_job(key)

    def _forget_job(self, key: Key) -> None:
        snapshot = self._cache.snapshot(key)
        if snapshot and snapshot.job:
            self._cache.remove(JOBS, snapshot.job)

    async def _refresh(self, resource: Resource, item: Object) -> None:
        data = metadata(item)
        try:
            self._cache.put(resource, await self._client.get(resource, data["namespace"], data["name"]))
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            self._cache.remove(resource, item)

    async def _write(self, verb: str, resource: Resource, call: Call) -> Object:
        code = "200"
        try:
            return await call or {}
        except ApiError as error:
            code = str(error.status)
            raise
        finally:
            self._metrics.writes.labels(verb, resource.kind, code).inc()


def _refusal(error: ApiError, passing: str, resource: Resource, *, may_be_final: bool = True) -> Exception:
    """Tell a refusal that the status should show from a failure that is just tried again.

    Args:
        error: What the server said.
        passing: The reason to show for what may be allowed later.
        resource: What was to be written.
        may_be_final: Whether a wrong spec can be the cause at all.
    """
    if error.status in _REFUSALS:
        final = may_be_final and _is_of_spec(error)
        return RefusedError(Trouble(f"{resource.kind}Refused", error.message, is_final=final))
    if error.status == HTTPStatus.FORBIDDEN or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return RefusedError(Trouble(passing, error.message, is_final=False))
    return error


def _is_of_spec(error: ApiError) -> bool:
    """Tell whether the server found the training's spec wrong: that alone does not change."""
    if any(word in error.message for word in _POLICIES):
        return False
    return _UNREADABLE in error.message or any(_FROM_SPEC.match(field) for field in error.fields)


def _event(snapshot: Snapshot, note: Note, *, now: datetime) -> Object:
    cause = f"{snapshot.uid} {note.cause}"
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{snapshot.name}.{hashlib.sha256(cause.encode()).hexdigest()[:16]}",
            "namespace": snapshot.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": snapshot.resource.kind,
            "name": snapshot.name,
            "namespace": snapshot.namespace,
            "uid": snapshot.uid,
        },
        "type": note.kind,
        "reason": note.reason,
        "message": note.message,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
