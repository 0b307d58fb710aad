"""The cache: newer beats older, lists are the truth, and what is gone stays gone."""

from __future__ import annotations

from typing import Any

from darkroom_api.names import LABEL_KIND, LABEL_NAME, LABEL_RUN, child_name, run_id
from darkroom_operator.cache import Cache
from darkroom_operator.objects import CONFIG_MAPS, JOBS, PARENTS, PODS, Key, Resource, RunKey
from tests.unit.operator.world import (
    ANNA,
    CHILD,
    LORA_TRAININGS,
    NOW,
    RUN,
    UID,
    ended,
    job,
    observation,
    running,
    training,
)


def at(version: int, item: dict[str, Any]) -> dict[str, Any]:
    owner = {"ownerReferences": [{"kind": "LoraTraining", "uid": UID, "name": "anna", "controller": True}]}
    known = owner if "ownerReferences" not in item["metadata"] and item["metadata"]["name"] == CHILD else {}
    return item | {"metadata": item["metadata"] | known | {"resourceVersion": str(version)}}


def of_kind(resource: Resource, uid: str) -> tuple[Key, dict[str, Any], dict[str, Any]]:
    """A training named anna, its key and its Job."""
    item = training(resource)
    item["metadata"]["uid"] = uid
    labels = {LABEL_KIND: resource.kind, LABEL_NAME: "anna", LABEL_RUN: run_id(uid)}
    owner = {"kind": resource.kind, "uid": uid, "name": "anna", "controller": True}
    child = job()
    child["metadata"] |= {
        "name": child_name("anna", run_id(uid)),
        "uid": f"job of {uid}",
        "labels": labels,
        "ownerReferences": [owner],
    }
    return Key(resource.kind, "studio", "anna"), at(10, item), at(11, child)


def test_trainings_of_two_kinds_may_have_one_name() -> None:
    cache = Cache()
    known = [of_kind(resource, f"uid-{resource.plural}") for resource in PARENTS]
    for key, item, child in known:
        assert cache.put(key.resource, item) == {key}
        assert cache.put(JOBS, child) == {key}
    for key, item, child in known:
        snapshot = cache.snapshot(key)
        assert snapshot
        assert snapshot.job
        assert snapshot.key == key
        assert snapshot.training["spec"] == item["spec"]
        assert snapshot.job["metadata"]["uid"] == child["metadata"]["uid"]
    assert {key for key, _ in cache.parents()} == {key for key, _, _ in known}
    first, gone, _ = known[0]
    assert cache.replace(first.resource, [], version=30, namespace=None) == {first}
    assert [cache.snapshot(key) is None for key, _, _ in known] == [True, False, False]
    assert gone["metadata"]["uid"] in cache._tombstones


def test_a_child_of_a_kind_that_there_is_not_belongs_to_nobody() -> None:
    labels = {LABEL_KIND: "Painting", LABEL_NAME: "anna", LABEL_RUN: RUN}
    stranger = job()
    stranger["metadata"]["labels"] = labels
    cache = filled()
    assert cache.put(JOBS, at(20, stranger)) == set()
    assert cache.remove(PODS, at(21, running() | {"metadata": running()["metadata"] | {"labels": labels}})) == set()


def filled() -> Cache:
    cache = Cache()
    cache.put(LORA_TRAININGS, at(10, training()))
    cache.put(JOBS, at(11, job()))
    cache.put(PODS, at(12, running()))
    return cache


def test_a_snapshot_has_what_belongs_to_the_run() -> None:
    snapshot = filled().snapshot(ANNA)
    assert snapshot
    assert snapshot.job
    assert snapshot.job["metadata"]["name"] == CHILD
    assert len(snapshot.pods) == 1
    assert snapshot.config_map is None
    assert Cache().snapshot(ANNA) is None


def test_a_change_names_its_training() -> None:
    cache = Cache()
    assert cache.put(JOBS, at(11, job())) == {ANNA}
    assert cache.put(JOBS, at(11, job())) == set()
    assert cache.put(JOBS, at(12, job(suspend=True))) == {ANNA}


def test_an_older_event_does_not_undo_an_own_write() -> None:
    cache = filled()
    cache.put(JOBS, at(20, job(suspend=True)))
    assert cache.put(JOBS, at(15, job(suspend=False))) == set()
    snapshot = cache.snapshot(ANNA)
    assert snapshot
    assert snapshot.job
    assert snapshot.job["spec"]["suspend"] is True


def test_objects_that_only_look_like_ours_are_not() -> None:
    cache = Cache()
    cache.put(LORA_TRAININGS, at(10, training()))
    forged = job()
    forged["metadata"]["ownerReferences"] = [{"uid": "other", "controller": True}]
    cache.put(JOBS, at(11, forged))
    stranger = running("stranger")
    stranger["metadata"]["ownerReferences"] = []
    cache.put(PODS, at(12, stranger))
    snapshot = cache.snapshot(ANNA)
    assert snapshot
    assert snapshot.job is None
    assert snapshot.pods == ()
    assert [pod["metadata"]["name"] for pod in snapshot.strangers] == ["stranger"]  # it may write all the same


def test_an_adopted_object_is_there_though_it_was_taken_for_deleted() -> None:
    cache = filled()
    cache.remove(JOBS, at(25, job()))
    assert cache.put(JOBS, at(26, job())) == set()
    assert cache.adopt(JOBS, at(26, job())) == {ANNA}
    snapshot = cache.snapshot(ANNA)
    assert snapshot
    assert snapshot.job
    assert cache.put(JOBS, at(27, job(suspend=True))) == {ANNA}


def test_a_list_removes_what_a_watch_missed() -> None:
    cache = filled()
    assert cache.replace(PODS, [], version=30, namespace=None) == {ANNA}
    snapshot = cache.snapshot(ANNA)
    assert snapshot
    assert snapshot.pods == ()


def test_a_list_spares_what_is_newer_and_what_lies_elsewhere() -> None:
    cache = filled()
    assert cache.replace(PODS, [], version=11, namespace=None) == set()
    assert cache.replace(PODS, [], version=30, namespace="elsewhere") == set()
    assert cache.count(PODS) == 1


def test_a_list_begun_before_a_deletion_does_not_bring_the_object_back() -> None:
    cache = filled()
    cache.remove(PODS, at(25, running()))
    assert cache.replace(PODS, [at(12, running())], version=20, namespace=None) == set()
    assert cache.count(PODS) == 0


def test_a_pods_last_state_outlives_it() -> None:
    cache = filled()
    cache.remove(PODS, at(25, ended(75)))
    snapshot = cache.snapshot(ANNA)
    assert snapshot
    assert snapshot.pods == ()
    terminated = snapshot.departed_pods[0]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert terminated["exitCode"] == 75


def test_nothing_is_left_of_a_training_that_is_gone() -> None:
    cache = filled()
    cache.put(CONFIG_MAPS, at(13, {"metadata": job()["metadata"] | {"uid": "map"}}))
    cache.remove(LORA_TRAININGS, at(30, training()))
    cache.remove(JOBS, at(31, job()))
    cache.remove(PODS, at(32, running()))
    cache.remove(CONFIG_MAPS, at(33, {"metadata": job()["metadata"] | {"uid": "map"}}))
    assert cache.snapshot(ANNA) is None
    assert cache._runs == {}


def test_an_observation_is_news_only_if_it_says_something_new() -> None:
    cache = filled()
    key = RunKey("studio", RUN)
    first, again, more = observation(step=1), observation(step=1, updated=NOW.replace(hour=13)), observation(step=2)
    heard = [cache.observe(key, "pod-a", progress=each.progress, received=NOW) for each in (first, again, more)]
    assert heard == [True, False, True]
    assert cache.observe(RunKey("studio", "0000000000"), "pod-a", progress=more.progress, received=NOW) is False


def test_an_observation_survives_a_change_of_the_only_child() -> None:
    cache = Cache()
    cache.put(LORA_TRAININGS, at(10, training()))
    cache.put(PODS, at(12, running()))
    cache.observe(RunKey("studio", RUN), "pod-a", progress=observation(step=1).progress, received=NOW)
    cache.put(PODS, at(13, running(deleting=True)))
    snapshot = cache.snapshot(ANNA)
    assert snapshot
    assert snapshot.observation
