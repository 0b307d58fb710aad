"""Images reach the node once, under a name that follows from their content; another's registry gets them too."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest

from dev.cluster import full, node, registry
from dev.cluster.console import ClusterError
from dev.cluster.paths import full_layout
from dev.images.context import IMAGES
from dev.images.pipeline import Pipeline


@pytest.fixture(scope="module")
def state() -> full.State:
    return full.up(full_layout())


def test_a_loaded_image_is_on_the_node_and_a_second_time_nothing_is_done(state: full.State) -> None:
    reference = Pipeline(state, existing=False).load(IMAGES["operator"])
    assert reference in node.ctr(full_layout(), "images", "ls", "-q").split()
    again = Pipeline(state, existing=False)
    assert again.load(IMAGES["operator"]) == reference
    assert again._builder is None, "no builder was even looked for"


def test_an_existing_clusters_registry_gets_the_image(state: full.State) -> None:
    place = f"team-{secrets.token_hex(3)}"
    elsewhere = replace(state, registry=f"{state.registry}/{place}")
    pipeline = Pipeline(elsewhere, existing=True, environment={"DARKROOM_BUILDER": "buildah"})
    reference = pipeline.load(IMAGES["operator"])
    assert reference.startswith(f"{state.registry}/{place}/darkroom/operator:")
    repository, _, tag = reference.removeprefix(f"{state.registry}/").rpartition(":")
    assert registry.has_image(state.registry, repository, tag)
    assert reference not in node.ctr(full_layout(), "images", "ls", "-q").split(), "its nodes pull by themselves"


def test_a_registry_that_is_away_is_named(state: full.State) -> None:
    away = Pipeline(replace(state, registry="127.0.0.1:1"), existing=True, environment={"DARKROOM_BUILDER": "buildah"})
    with pytest.raises(ClusterError, match=r"no image registry answers at 127\.0\.0\.1:1"):
        away.push(IMAGES["operator"])
