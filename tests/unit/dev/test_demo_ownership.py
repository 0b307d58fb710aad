"""Which objects of an existing cluster the demo may touch, from objects as an API server returns them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dev.demo.ownership import Found, strangers

OURS = {"darkroom.dev/demo": "true"}
NOTHING = Found(namespace=None, secret=None, training=None, crds=[], releases=[])


def item(name: str, labels: dict[str, str] | None = None, **annotations: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "uid": "5a1c"}
    if labels:
        metadata["labels"] = labels
    if annotations:
        metadata["annotations"] = {f"meta.helm.sh/{key.replace('_', '-')}": text for key, text in annotations.items()}
    return {"metadata": metadata}


def release(revision: int, labels: dict[str, str] | None = None) -> dict[str, Any]:
    helm = {"owner": "helm", "name": "darkroom", "status": "deployed", "version": str(revision)}
    return item(f"sh.helm.release.v1.darkroom.v{revision}", {**helm, **(labels or {})})


DEMO_CRD = item("crd", release_name="darkroom", release_namespace="darkroom-system")
OUR_OBJECTS = Found(
    namespace=item("demo", {"kubernetes.io/metadata.name": "demo", **OURS}),
    secret=item("studio-s3", OURS),
    training=item("robot", OURS),
    crds=[DEMO_CRD],
    releases=[release(1, OURS), release(2, OURS)],
)


@pytest.mark.parametrize(
    "found", [NOTHING, OUR_OBJECTS, replace(NOTHING, crds=[DEMO_CRD])], ids=["none", "ours", "kept"]
)
def test_free_names_and_the_demos_own_objects_are_no_strangers(found: Found) -> None:
    assert strangers(found) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (replace(OUR_OBJECTS, namespace=item("demo")), "namespace demo: "),
        (replace(OUR_OBJECTS, namespace=item("demo", {"darkroom.dev/demo": "false"})), "namespace demo: "),
        (replace(OUR_OBJECTS, secret=item("studio-s3")), "Secret studio-s3 in demo: "),
        (replace(OUR_OBJECTS, training=item("robot")), "training robot in demo: "),
        (replace(OUR_OBJECTS, releases=[release(1)]), "helm release darkroom in the namespace darkroom-system: "),
        (replace(OUR_OBJECTS, releases=[release(1), release(2, OURS)]), "helm release darkroom in the namespace"),
        (
            replace(NOTHING, crds=[item("crd", release_name="dr", release_namespace="platform")]),
            "CustomResourceDefinitions crd, of the helm release dr in the namespace platform: ",
        ),
        (replace(NOTHING, crds=[DEMO_CRD, item("other")]), "CustomResourceDefinitions other, of no helm release: "),
    ],
)
def test_what_somebody_else_made_is_named_with_a_way_out(found: Found, told: str) -> None:
    [problem] = strangers(found)
    assert told in problem
    assert "kubectl delete" in problem or "helm uninstall" in problem


def test_everything_in_the_way_is_told_at_once() -> None:
    found = replace(NOTHING, namespace=item("demo"), secret=item("studio-s3"), releases=[release(7)], crds=[DEMO_CRD])
    assert len(strangers(found)) == 3
