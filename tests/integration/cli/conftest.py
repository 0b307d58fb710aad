"""A training as the operator leaves it: a real resource with a status, and a run's objects in a real store."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes import client, config
from PIL import Image

from darkroom_api.kinds import LORA_TRAINING
from darkroom_api.layout import checkpoint_directory, run_prefix, samples_directory, weights_file
from darkroom_api.names import API_VERSION, GROUP, VERSION, run_id
from darkroom_api.objects import FileRecord, Manifest
from darkroom_api.uris import S3Location, parse_s3
from dev.cluster.paths import REPOSITORY
from dev.cluster.waiting import wait_for

if TYPE_CHECKING:
    from tests.integration.conftest import Store

PLURAL = LORA_TRAINING.plural


class Cluster:
    """What these tests write to the API server."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        api = config.new_client_from_config(str(kubeconfig))
        self.objects = client.CustomObjectsApi(api)
        self._extensions = client.ApiextensionsV1Api(api)
        self._core = client.CoreV1Api(api)

    def install(self) -> None:
        """Apply the CRD unless another test has."""
        path = REPOSITORY / "crds" / f"{GROUP}_{PLURAL}.yaml"
        try:
            self._extensions.create_custom_resource_definition(yaml.safe_load(path.read_text()))
        except client.ApiException as error:
            if error.status != 409:
                raise
        wait_for(self._is_served, "the CRD to be served", timeout=20)

    def _is_served(self) -> bool:
        try:
            self.objects.list_cluster_custom_object(GROUP, VERSION, PLURAL)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return True

    def apply(self, name: str, spec: Mapping[str, Any]) -> str:
        """Create a training and return its uid."""
        body = {"apiVersion": API_VERSION, "kind": "LoraTraining", "metadata": {"name": name}, "spec": dict(spec)}
        created = self.objects.create_namespaced_custom_object(GROUP, VERSION, "default", PLURAL, body)
        return str(created["metadata"]["uid"])

    def tell(self, name: str, status: Mapping[str, Any]) -> None:
        """Write a status as the operator would."""
        self.objects.patch_namespaced_custom_object_status(
            GROUP, VERSION, "default", PLURAL, name, {"status": dict(status)}
        )

    def delete(self, name: str) -> None:
        self.objects.delete_namespaced_custom_object(GROUP, VERSION, "default", PLURAL, name)


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path) -> Cluster:
    """The session's API server with our CRD."""
    writer = Cluster(kubeconfig)
    writer.install()
    return writer


@pytest.fixture
def credentials(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's keys where a person has them: in the environment. Its address comes from the resource."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)


@dataclass
class Run:
    """A training with its objects in the store."""

    cluster: Cluster
    store: Store
    name: str
    prefix: S3Location

    def put(self, directory: str, files: Mapping[str, bytes], *, manifest: bool = True) -> None:
        """Write a directory as the trainer publishes it: files first, manifest last."""
        target = self.prefix.join(directory)
        content = dict(files)
        if manifest:
            records = [
                FileRecord(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                for name, data in files.items()
            ]
            made = Manifest(run=self.prefix.key[-10:], epoch=1, step=10, files=records)
            content["manifest.json"] = made.model_dump_json(by_alias=True).encode()
        for name, data in content.items():
            self.store.client().put_object(Bucket=target.bucket, Key=target.join(name).key, Body=data)

    def put_checkpoints(self, epochs: Sequence[int]) -> list[dict[str, Any]]:
        """Write checkpoints and return them as a status lists them."""
        records = []
        for epoch in epochs:
            name, data = weights_file(self.name, epoch=epoch), b"weights %d" % epoch
            self.put(checkpoint_directory(epoch), {name: data})
            uri = str(self.prefix.join(checkpoint_directory(epoch), name))
            digest = hashlib.sha256(data).hexdigest()
            records.append({"epoch": epoch, "step": epoch * 10, "uri": uri, "sha256": digest, "sizeBytes": len(data)})
        return records

    def put_samples(self, epoch: int, colours: Mapping[str, tuple[int, int, int]], *, manifest: bool = True) -> None:
        """Write sample pictures of one colour each."""
        files = {}
        for name, colour in colours.items():
            out = io.BytesIO()
            Image.new("RGB", (64, 64), colour).save(out, format="PNG")
            files[name] = out.getvalue()
        self.put(samples_directory(epoch), files, manifest=manifest)


@pytest.fixture
def run(cluster: Cluster, s3: Store, credentials: None) -> Iterator[Run]:
    """A training named robot of two prompts that nothing reconciles."""
    output = f"s3://{s3.bucket()}/loras"
    uid = cluster.apply(
        "robot",
        {
            "baseModel": {"uri": "s3://models/base.safetensors"},
            "dataset": {"uri": "s3://studio/robot"},
            "training": {"epochs": 2},
            "samples": {"prompts": ["a robot", "a cat"], "seeds": [1]},
            "output": {"uri": output},
            "storage": {"endpointURL": s3.endpoint_url},
        },
    )
    yield Run(cluster, s3, "robot", run_prefix(parse_s3(output), name="robot", run=run_id(uid)))
    try:
        cluster.delete("robot")
    except client.ApiException as error:
        if error.status != 404:
            raise
