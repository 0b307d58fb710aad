"""A cluster with Darkroom installed as a user installs it: the real node, the real images, the chart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import full
from dev.cluster.paths import REPOSITORY, full_layout
from dev.demo.data import BASE_MODEL, client
from dev.demo.installing import bring_images, install_operator
from dev.demo.site import RELEASE, SYSTEM_NAMESPACE, Site
from tests.e2e.kube import Kubectl, Object, until
from tests.e2e.runs import RunObjects

NAMESPACE = "e2e"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True)
class Lab:
    """What the tests work with."""

    kubectl: Kubectl
    client: Any
    bucket: str
    access_key: str
    secret_key: str
    scratch: Path
    operator_service_account: str = RELEASE
    base_model: Path = BASE_MODEL

    def put(self, key: str, data: bytes) -> str:
        """Put an object into the store and return its address."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        return f"s3://{self.bucket}/{key}"

    def upload_subject(self, folder: str, *, repeats: int, count: int) -> str:
        """Draw pictures of the examples' subject, upload them in kohya's layout and return the dataset's address."""
        prefix = f"e2e/subjects/{folder}"
        directory = self.scratch / f"subject-{count}"
        if not directory.exists():
            command = [sys.executable, "-m", "examples.base_model", "draw-subject", "--output", str(directory)]
            subprocess.run([*command, "--count", str(count)], cwd=REPOSITORY, check=True)
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                inner = path.parent.name.partition("_")[2] or path.parent.name
                self.put(f"{prefix}/{repeats}_{inner}/{path.name}", path.read_bytes())
        return f"s3://{self.bucket}/{prefix}"

    def create_secret(self, name: str, *, access_key: str, secret_key: str) -> None:
        """Apply a Secret with keys of the store."""
        data = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})

    def objects(self, status: Object) -> RunObjects:
        """Return the objects of the run with this status."""
        bucket, _, prefix = status["output"].removeprefix("s3://").partition("/")
        return RunObjects(client=self.client, bucket=bucket, prefix=prefix.rstrip("/"))


def _prepare(kubectl: Kubectl) -> None:
    """Make both namespaces as the demo does, and the tests' own one from nothing."""
    kubectl.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout=100s")
    for namespace in (SYSTEM_NAMESPACE, NAMESPACE):
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": RESTRICTED}})
    until("the default ServiceAccount", lambda: kubectl.get("serviceaccount", "default"), timeout=30)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Bring everything up (found up, if it is), install the chart and fill the store."""
    site = Site.of(full.up(full_layout()), is_existing=False)
    images = bring_images(site)
    kubectl = Kubectl(site.environment, NAMESPACE)
    _prepare(kubectl)
    install_operator(site, images)
    store = site.state.s3
    found = Lab(
        kubectl=kubectl,
        client=client(store),
        bucket=site.state.bucket,
        access_key=store.access_key,
        secret_key=store.secret_key,
        scratch=tmp_path_factory.mktemp("subjects"),
    )
    found.put("e2e/base.safetensors", found.base_model.read_bytes())
    secret = site.spec().storage.credentials
    assert secret
    found.create_secret(secret.secret_name, access_key=store.access_key, secret_key=store.secret_key)
    yield found
    kubectl.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
