"""What of an existing cluster is the demo's own: it has the label, and everything else is left alone.

The demo's names are those of the README, so on somebody's cluster they may be taken. `require_free` looks before
`installing` and `running` write anything; `remove` takes away what has the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from darkroom_api.kinds import KINDS, LORA_TRAINING
from darkroom_api.names import GROUP
from dev.cluster.console import ClusterError, say, stage
from dev.demo.site import NAMESPACE, RELEASE, SYSTEM_NAMESPACE, Object, Site

LABEL = "darkroom.dev/demo"
LABELS = {LABEL: "true"}
SELECTOR = f"{LABEL}=true"
TRAININGS = f"{LORA_TRAINING.plural}.{GROUP}"
"""What the demo makes one of."""
DEFINITIONS = tuple(f"{kind.plural}.{GROUP}" for kind in KINDS)
"""What the chart brings; a cluster that had an earlier release may hold some of them."""
BY_HAND = f"""\
  kubectl delete {TRAININGS} --selector={SELECTOR} --namespace {NAMESPACE}
  helm uninstall {RELEASE} --namespace {SYSTEM_NAMESPACE}
  kubectl delete namespace --selector={SELECTOR}"""
"""How a person removes what the demo made."""
RELEASE_NAME = "meta.helm.sh/release-name"
RELEASE_NAMESPACE = "meta.helm.sh/release-namespace"


@dataclass(frozen=True)
class Found:
    """What lies in a cluster under the demo's names; None is what is not there."""

    namespace: Object | None
    secret: Object | None
    training: Object | None
    crds: Sequence[Object]
    releases: Sequence[Object]
    """The Secrets in which helm keeps the revisions of a release; the release's labels are theirs."""


def is_ours(item: Object) -> bool:
    """Tell whether the demo made an object."""
    labels: dict[str, Any] = item["metadata"].get("labels") or {}
    return labels.get(LABEL) == "true"


def strangers(found: Found) -> list[str]:
    """Return what is in the demo's way and not its own, each with what its owner can do."""
    problems = []
    if any(not is_ours(revision) for revision in found.releases):
        where = f"release {RELEASE} in the namespace {SYSTEM_NAMESPACE}"
        uninstall = f"helm uninstall {RELEASE} --namespace {SYSTEM_NAMESPACE}"
        problems.append(f"helm {where}: your installation of Darkroom; use that one, or remove it: {uninstall}")
    elif owners := {_name(crd): owner for crd in found.crds if (owner := _stranger_of(crd))}:
        problems.append(
            f"CustomResourceDefinitions {', '.join(owners)}, of {' and '.join(sorted(set(owners.values())))}: helm "
            "would refuse to take them over, and two operators must not serve the same trainings; use that "
            f"installation, or remove it and the CRDs: kubectl delete crd {' '.join(owners)} (this deletes every "
            "training)"
        )
    for item, what, delete in (
        (found.namespace, f"namespace {NAMESPACE}", f"namespace {NAMESPACE}"),
        (found.secret, f"Secret {_name(found.secret)} in {NAMESPACE}", f"secret {_name(found.secret)} -n {NAMESPACE}"),
        (
            found.training,
            f"training {_name(found.training)} in {NAMESPACE}",
            f"lora {_name(found.training)} -n {NAMESPACE}",
        ),
    ):
        if item and not is_ours(item):
            problems.append(f"{what}: if nobody needs it: kubectl delete {delete}")
    return problems


def _name(item: Object | None) -> str:
    return str(item["metadata"]["name"]) if item else ""


def _stranger_of(crd: Object) -> str | None:
    """Return who owns a CRD; None if it is the demo's release, whose CRDs outlive it."""
    annotations: dict[str, str] = crd["metadata"].get("annotations") or {}
    owner = (annotations.get(RELEASE_NAME), annotations.get(RELEASE_NAMESPACE))
    if owner == (RELEASE, SYSTEM_NAMESPACE):
        return None
    return f"the helm release {owner[0]} in the namespace {owner[1]}" if all(owner) else "no helm release"


def look(site: Site) -> Found:
    """Return what lies in the cluster under the demo's names."""
    example = site.example()
    in_demo = ("--namespace", NAMESPACE)
    crds = _definitions(site)
    has_trainings = TRAININGS in map(_name, crds)
    return Found(
        namespace=site.get("namespace", NAMESPACE),
        secret=site.get("secret", example["spec"]["storage"]["credentials"]["secretName"], *in_demo),
        training=site.get(TRAININGS, example["metadata"]["name"], *in_demo) if has_trainings else None,
        crds=crds,
        releases=_releases(site),
    )


def _definitions(site: Site) -> list[Object]:
    found = (site.get("customresourcedefinition", name) for name in DEFINITIONS)
    return [crd for crd in found if crd]


def _releases(site: Site) -> list[Object]:
    selector = f"--selector=owner=helm,name={RELEASE}"
    found = site.get("secret", "--namespace", SYSTEM_NAMESPACE, selector)
    return [item for item in (found or {}).get("items", []) if item["metadata"]["labels"]["status"] != "uninstalled"]


def require_free(site: Site) -> None:
    """Look, before anything is written, whether the demo's names are free or the demo's own.

    Raises:
        ClusterError: Somebody else's object has one of them.
    """
    with stage("look whether somebody else uses the demo's names"):
        problems = strangers(look(site))
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise ClusterError(
                f"this cluster holds what the demo did not make (it has no label {SELECTOR}), and the demo touches "
                f"nothing of it:\n{listed}\nOr run the demo on another cluster."
            )


def remove(site: Site) -> None:
    """Remove what the demo brought to a cluster that stays; the CRDs and the objects in the store stay too."""
    with stage("remove the demo's training, operator and namespaces", usual="20 s"):
        if TRAININGS in map(_name, _definitions(site)):
            site.kubectl("delete", TRAININGS, f"--selector={SELECTOR}", "--namespace", NAMESPACE)
        releases = _releases(site)
        if releases and all(is_ours(revision) for revision in releases):
            site.helm("uninstall", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--ignore-not-found", "--wait")
        kept = _trainings_of_others(site)
        for namespace in (SYSTEM_NAMESPACE, NAMESPACE):
            found = site.get("namespace", namespace)
            if found and is_ours(found) and not (kept and namespace == NAMESPACE):
                site.kubectl("delete", "namespace", namespace)
    if kept:
        say(f"the namespace {NAMESPACE} stays: it holds trainings that the demo did not make: {', '.join(kept)}")


def _trainings_of_others(site: Site) -> list[str]:
    lists = [site.get(_name(crd), "--namespace", NAMESPACE) or {} for crd in _definitions(site)]
    return [_name(item) for found in lists for item in found.get("items", []) if not is_ours(item)]
