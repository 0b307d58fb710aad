"""Trainings for the end-to-end tests: short specs, what is left in the store, and the process on the node."""

from __future__ import annotations

import copy
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from safetensors.torch import load

from tests.e2e.kube import Kubectl, Object, until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lora-training.yaml"
BASE_MODEL_URI = "s3://darkroom/e2e/base.safetensors"
KIND = "loratrainings.darkroom.dev"


def training(name: str, *, dataset: str, **training: Any) -> Object:
    """Return the example's LoraTraining under another name, with another dataset and the given training fields."""
    manifest: Object = copy.deepcopy(next(yaml.safe_load_all(EXAMPLE.read_text())))
    manifest["metadata"] = {"name": name}
    manifest["spec"]["baseModel"] = {"uri": BASE_MODEL_URI}
    manifest["spec"]["dataset"] = {"uri": dataset}
    manifest["spec"]["training"] |= training
    return manifest


def status(kubectl: Kubectl, name: str) -> Object:
    """Return the status of a training, empty when there is none yet."""
    found = kubectl.get(KIND, name)
    assert found, f"there is no training {name}"
    now: Object = found.get("status", {})
    return now


def wait_for_phase(kubectl: Kubectl, name: str, *phases: str, timeout: float) -> Object:
    """Wait until a training is in one of the phases; a terminal phase that is not asked for fails at once."""

    def reached() -> Object | None:
        now = status(kubectl, name)
        if now.get("phase") in phases:
            return now
        assert now.get("phase") not in {"Succeeded", "Failed"}, f"{name} is {now['phase']}: {now.get('failure')}"
        return None

    return until(f"{name} is {' or '.join(phases)}", reached, timeout=timeout)


def running_pod(kubectl: Kubectl, name: str) -> Object | None:
    """Return the training's pod if its container runs."""
    for pod in kubectl.list("pods", f"darkroom.dev/name={name}"):
        states = [container["state"] for container in pod["status"].get("containerStatuses", [])]
        if any("running" in state for state in states) and "deletionTimestamp" not in pod["metadata"]:
            return pod
    return None


def wait_for_step(kubectl: Kubectl, name: str, step: int, *, timeout: float = 180) -> Object:
    """Wait until the running pod itself says that it has done this many steps, and return the pod.

    Asks the pod, not kubectl, once it runs: a step takes a fraction of a second.
    """
    known: list[Object] = []

    def reached() -> Object | None:
        if not known or (done := _step(known[0]["status"].get("podIP"))) < 0:
            found = running_pod(kubectl, name)
            known[:] = [found] if found else []
            assert found or status(kubectl, name).get("phase") != "Succeeded", f"{name} ended before step {step}"
            return None
        return known[0] if done >= step else None

    return until(f"{name} has done {step} steps", reached, timeout=timeout, pause=0.05)


def _step(address: str | None) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}:9464/progress", timeout=2) as answer:
            return int(json.load(answer).get("step", 0))
    except OSError:
        return -1


def kill_trainer(pod: Object) -> None:
    """Send SIGKILL to the trainer's process in the pod, from the node."""
    uid = pod["metadata"]["uid"]
    for process in psutil.process_iter(["pid", "cmdline"]):
        if "darkroom_trainer" in (process.info["cmdline"] or []) and uid in _cgroups(process.pid):
            process.kill()
            return
    raise AssertionError(f"no trainer process of pod {uid} on this node")


def _cgroups(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


@dataclass(frozen=True)
class RunObjects:
    """What a run left in the store."""

    client: Any
    bucket: str
    prefix: str

    def keys(self) -> list[str]:
        """Return all keys below the run's prefix, without it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + "/")
        return [item["Key"].removeprefix(self.prefix + "/") for page in pages for item in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        """Return an object's content."""
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"].read()
        return data

    def weights(self, epoch: int, name: str) -> dict[str, bytes]:
        """Return every tensor's name and exact bytes. (The file's metadata holds the run's own name.)"""
        tensors = load(self.read(f"checkpoints/epoch-{epoch:06d}/{name}-{epoch:06d}.safetensors"))
        return {key: tensor.contiguous().view(-1).numpy().tobytes() for key, tensor in tensors.items()}

    def losses(self, epochs: int) -> list[float]:
        """Return the loss of every step of the run."""
        documents = [json.loads(self.read(f"checkpoints/epoch-{n:06d}/metrics.json")) for n in range(1, epochs + 1)]
        return [loss for document in documents for loss in document["losses"]]
