"""Turns of the reconciler against an HTTP server that answers as an API server would in a bad moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any

import kubernetes.aio.client
import pytest
from aiohttp import web

from darkroom_operator.cache import Cache
from darkroom_operator.client import ApiError
from darkroom_operator.execute import Executor, RefusedError, _refusal
from darkroom_operator.kube import AioClient
from darkroom_operator.metrics import Metrics
from darkroom_operator.objects import CONFIG_MAPS, JOBS, PARENTS, WATCHED, Key, Object, Resource
from darkroom_operator.polling import Poller
from darkroom_operator.queue import WorkQueue
from darkroom_operator.reconciling import Reconciler
from darkroom_operator.resyncing import CannotStartError, Resync, _explain
from tests.unit.operator.world import ANNA, CHILD, CONFIG, LORA_TRAININGS, NOW, RUN, UID, job, running, stamp, training

Answer = Callable[[str, str, Any], tuple[int, Object]]


@dataclass
class Api:
    """What answers, and what was asked."""

    answer: Answer
    asked: list[tuple[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        name = request.path.rsplit("/", 1)[1]
        self.asked.append((request.method, name))
        self.paths.append(request.path)
        body = await request.json() if request.method in {"POST", "PATCH"} else None
        status, data = self.answer(request.method, name, body)
        return web.json_response(data, status=status)


@asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[tuple[Api, AioClient]]:
    """Give a client of a server that answers so."""
    api, application = Api(answer), web.Application()
    application.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = kubernetes.aio.client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with kubernetes.aio.client.ApiClient(configuration) as connection:
            yield api, AioClient(connection)
    finally:
        await runner.cleanup()


def versioned(item: Object, version: int) -> Object:
    return item | {"metadata": item["metadata"] | {"resourceVersion": str(version)}}


def reconciler(
    client: AioClient, *, job_name: str | None = None, resource: Resource = LORA_TRAININGS
) -> tuple[Reconciler, WorkQueue[Key], Cache]:
    cache, queue, metrics = Cache(), WorkQueue[Key](), Metrics()
    status = {"jobName": job_name} if job_name else None
    cache.put(resource, versioned(training(resource, status=status), 1))

    def clock() -> datetime:
        return NOW

    poller = Poller(cache, interval=1, rate=1, metrics=metrics, changed=queue.add, clock=clock)
    made = Reconciler(
        cache, queue, Executor(client, cache, metrics), poller=poller, config=CONFIG, metrics=metrics, clock=clock
    )
    return made, queue, cache


def owned(item: Object, *, labels: Object | None = None) -> Object:
    owner = {"kind": "LoraTraining", "uid": UID, "name": "anna", "controller": True}
    kept = item["metadata"]["labels"] if labels is None else labels
    return versioned(item | {"metadata": item["metadata"] | {"ownerReferences": [owner], "labels": kept}}, 7)


def plan_object() -> Object:
    return {"metadata": job()["metadata"] | {"uid": "map"}}


async def test_what_has_no_effect_is_tried_again_with_a_pause() -> None:
    # Somebody took the labels off: the objects are in the way, and no watch shows them.
    def answer(method: str, name: str, body: Any) -> tuple[int, Object]:
        if method == "POST":
            return (201, body) if name == "events" else (409, {"reason": "AlreadyExists", "message": "exists"})
        if method == "PATCH":
            return 200, versioned(training(status=body["status"]), 2)
        if name == "pods":
            return 200, {"items": [], "metadata": {"resourceVersion": "9"}}
        return 200, owned(job(), labels={})

    async with served(answer) as (api, client):
        made, queue, _ = reconciler(client)
        assert await made.reconcile(ANNA) is False
        queue.done(await queue.get())  # the status was written
        asked = len(api.asked)
        assert await made.reconcile(ANNA) is False
        assert len(api.asked) > asked
        assert queue.is_idle


async def test_an_adopted_object_is_seen_though_it_was_taken_for_deleted() -> None:
    def answer(method: str, name: str, body: Any) -> tuple[int, Object]:
        if method == "POST":
            return (201, body) if name == "events" else (409, {"reason": "AlreadyExists", "message": "exists"})
        return 200, versioned(training(status=body["status"]), 2) if method == "PATCH" else owned(job())

    async with served(answer) as (_, client):
        made, _, cache = reconciler(client)
        cache.put(CONFIG_MAPS, owned(plan_object()))
        cache.remove(JOBS, owned(job()))
        await made.reconcile(ANNA)
        snapshot = cache.snapshot(ANNA)
        assert snapshot
        assert snapshot.job


async def test_no_second_job_is_made_beside_a_pod_that_no_watch_has_shown() -> None:
    orphan = versioned(running(), 5)
    orphan["metadata"]["ownerReferences"] = []

    def answer(method: str, name: str, body: Any) -> tuple[int, Object]:
        if method == "GET":
            return 200, {"items": [orphan], "metadata": {"resourceVersion": "9"}}
        return (201, body) if name == "events" else (200, versioned(training(status=body["status"]), 2))

    async with served(answer) as (api, client):
        made, _, cache = reconciler(client, job_name=CHILD)
        await made.reconcile(ANNA)
        assert ("GET", "pods") in api.asked
        assert ("POST", "jobs") not in api.asked
        snapshot = cache.snapshot(ANNA)
        assert snapshot
        assert snapshot.run == RUN
        assert snapshot.training["status"]["conditions"][0]["reason"] == "OrphanedPod"


@pytest.mark.parametrize("resource", PARENTS, ids=lambda resource: resource.kind)
async def test_status_and_events_are_of_the_kind(resource: Resource) -> None:
    events = []

    def answer(method: str, name: str, body: Any) -> tuple[int, Object]:
        if method == "PATCH":
            return 200, versioned(training(resource, status=body["status"]), 2)
        if name == "events":
            events.append(body)
            return 201, body
        return 201, versioned(
            body | {"metadata": body["metadata"] | {"uid": name, "creationTimestamp": stamp()}, "status": {}}, 3
        )

    async with served(answer) as (api, client):
        made, _, cache = reconciler(client, resource=resource)
        key = Key(resource.kind, "studio", "anna")
        assert await made.reconcile(key)
        assert [path for path in api.paths if path.endswith("/status")] == [
            f"/apis/darkroom.dev/v1alpha1/namespaces/studio/{resource.plural}/anna/status"
        ]
        snapshot = cache.snapshot(key)
        assert snapshot
        assert snapshot.training["status"]["jobName"] == CHILD
        assert {event["involvedObject"]["kind"] for event in events} == {resource.kind}


@pytest.mark.parametrize(
    ("error", "reason", "is_final"),
    [
        (ApiError(422, "Invalid", "wrong", fields=("spec.template.spec.containers[0].resources.limits[cpu]",)),
         "JobRefused", True),
        (ApiError(422, "Invalid", "wrong", fields=("spec.template.spec.nodeSelector",)), "JobRefused", True),
        (ApiError(400, "BadRequest", "quantities must match the regular expression"), "JobRefused", True),
        (ApiError(422, "Invalid", "wrong", fields=("spec.template.spec.hostAliases[0].ip",)), "JobRefused", False),
        (ApiError(422, "Invalid", "wrong"), "JobRefused", False),
        (ApiError(422, "Invalid", "ValidatingAdmissionPolicy 'gpus' with binding 'b' denied request: no",
                  fields=("spec.backoffLimit",)), "JobRefused", False),
        (ApiError(400, "BadRequest", 'admission webhook "w" denied the request: no'), "JobRefused", False),
        (ApiError(403, "Forbidden", "exceeded quota: gpus"), "JobNotCreated", False),
        (ApiError(500, "InternalError", "webhook away"), "JobNotCreated", False),
    ],
)  # fmt: skip
def test_only_a_wrong_spec_ends_a_run(error: ApiError, reason: str, is_final: bool) -> None:
    refused = _refusal(error, "JobNotCreated", JOBS)
    assert isinstance(refused, RefusedError)
    assert (refused.trouble.reason, refused.trouble.is_final) == (reason, is_final)
    assert refused.trouble.message == error.message


def test_a_refused_change_is_no_refused_creation() -> None:
    wrong = ApiError(422, "Invalid", "wrong", fields=("spec.backoffLimit",))
    for error, reason in ((wrong, "JobRefused"), (ApiError(403, "Forbidden", "no"), "JobNotChanged")):
        refused = _refusal(error, "JobNotChanged", JOBS, may_be_final=False)
        assert isinstance(refused, RefusedError)
        assert (refused.trouble.reason, refused.trouble.is_final) == (reason, False)


@pytest.mark.parametrize("status", [0, 408, 410, 429, 500, 503])
def test_a_busy_server_is_waited_for(status: int) -> None:
    assert _explain(ApiError(status, "", "busy")) is None


@pytest.mark.parametrize("status", [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN])
def test_what_waiting_does_not_mend_is_told(status: int) -> None:
    assert _explain(ApiError(status, "", "no"))


@pytest.mark.parametrize("resource", PARENTS, ids=lambda resource: resource.kind)
async def test_a_missing_definition_is_named(resource: Resource) -> None:
    def answer(_: str, name: str, __: Any) -> tuple[int, Object]:
        if name == resource.plural:
            return 404, {"reason": "NotFound", "message": "the server could not find the requested resource"}
        return 200, {"items": [], "metadata": {"resourceVersion": "1"}}

    async with served(answer) as (_, client):
        resync = Resync(client, Cache(), namespaces=(), interval=60, enqueue=lambda _: None)
        with pytest.raises(CannotStartError, match=rf"no resource {resource.plural}\.darkroom\.dev/v1alpha1; install"):
            await resync.start()


async def test_the_operator_is_ready_when_its_watches_have_begun() -> None:
    async with served(lambda *_: (200, {"items": [], "metadata": {"resourceVersion": "1"}})) as (_, client):
        resync = Resync(client, Cache(), namespaces=("a", "b"), interval=60, enqueue=lambda _: None)
        assert resync.unready() == "the cache is not synced yet"
        await resync.once()
        for resource in WATCHED:
            resync.watched(resource, "a")
        for resource in WATCHED[1:]:
            resync.watched(resource, "b")
        assert resync.unready() == "no watch has begun yet for loratrainings"
        resync.watched(LORA_TRAININGS, "b")
        assert resync.unready() is None
