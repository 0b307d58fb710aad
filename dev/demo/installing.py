"""Install the operator with helm as a user would, and prepare a namespace as a platform team would."""

from __future__ import annotations

import json

from dev.cluster.console import ClusterError, stage
from dev.cluster.waiting import wait_for
from dev.demo.ownership import LABELS, SELECTOR
from dev.demo.site import CHART, NAMESPACE, RELEASE, SYSTEM_NAMESPACE, Site
from dev.images.context import IMAGES
from dev.images.pipeline import Pipeline

NAMESPACE_LABELS = {"pod-security.kubernetes.io/enforce": "restricted", **LABELS}


def bring_images(site: Site) -> dict[str, str]:
    """Build and deliver the images; return what the cluster pulls, by `operator` and `trainer`."""
    pipeline = Pipeline(site.state, existing=site.is_existing)
    return {image.name: pipeline.load(image) for image in IMAGES.values()}


def prepare_namespaces(site: Site) -> None:
    """Make both namespaces, with the strictest pod security enforced, and the Secret with the store's keys."""
    with stage(f"make the namespaces {SYSTEM_NAMESPACE} and {NAMESPACE} (pod security: restricted) and the Secret"):
        for name in (SYSTEM_NAMESPACE, NAMESPACE):
            if not site.get("namespace", name):  # one that somebody made keeps its own labels
                metadata = {"name": name, "labels": NAMESPACE_LABELS}
                site.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        credentials = site.spec().storage.credentials
        assert credentials, "the example names a Secret"
        keys = {
            "AWS_ACCESS_KEY_ID": site.state.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": site.state.s3.secret_key,
        }
        site.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": credentials.secret_name, "namespace": NAMESPACE, "labels": LABELS},
                "stringData": keys,
            }
        )
        wait_for(
            lambda: site.get("serviceaccount", "default", "--namespace", NAMESPACE),
            f"the ServiceAccount default of the namespace {NAMESPACE}",
            timeout=30,
        )


def install_operator(site: Site, images: dict[str, str]) -> None:
    """Install or upgrade the chart and wait until the operator is ready."""
    _clear_half_release(site)
    values = {"operator.image": images["operator"], "trainer.image": images["trainer"], "operator.logFormat": "text"}
    flags = [part for path, value in values.items() for part in ("--set-string", f"{path}={value}")]
    with stage("helm upgrade --install", usual="5 s"):
        try:
            where = ("--namespace", SYSTEM_NAMESPACE, "--labels", SELECTOR)
            site.helm("upgrade", "--install", RELEASE, str(CHART), *where, *flags, "--wait", "--timeout", "2m")
        except ClusterError as error:
            raise ClusterError(f"the operator does not become ready: {error}\n{operator_state(site)}") from error


def _clear_half_release(site: Site) -> None:
    """Remove a release whose installation was interrupted: helm refuses to go on from there."""
    ours = ("--selector", SELECTOR) if site.is_existing else ()
    where = ("--namespace", SYSTEM_NAMESPACE, *ours)
    listed = json.loads(site.helm("list", *where, "--pending", "--output", "json") or "[]")
    if any(release["name"] == RELEASE for release in listed):
        with stage("remove the release that an interrupted helm left"):
            site.helm("uninstall", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--wait")


def operator_state(site: Site) -> str:
    """Return what helps to see why an operator does not run: its pods, their events and its last lines."""
    where = ("--namespace", SYSTEM_NAMESPACE)
    return "\n".join(
        [
            site.kubectl("get", "pods", *where, "--output=wide", check=False),
            site.kubectl("get", "events", *where, "--field-selector=type=Warning", check=False),
            operator_log(site),
        ]
    )


def operator_log(site: Site) -> str:
    """Return the operator's last lines."""
    text = site.kubectl("logs", f"deployment/{RELEASE}", "--namespace", SYSTEM_NAMESPACE, "--tail=20", check=False)
    return f"the operator's last lines:\n{text}"
