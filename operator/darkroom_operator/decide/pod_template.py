"""Builds the training pod: non-root, read-only root, no token, no more than the plan and the run's own credentials."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from darkroom_api.compute import Compute
from darkroom_api.names import (
    PLAN_DIRECTORY,
    PLAN_FILE,
    PROGRESS_PORT,
    TERMINATION_MESSAGE_PATH,
    TRAINER_CONTAINER,
    WORK_DIRECTORY,
)
from darkroom_api.storage import Storage
from darkroom_api.trackers import Tracker
from darkroom_api.training import TrainingSpec
from darkroom_operator.config import Config
from darkroom_operator.decide.children import run_labels
from darkroom_operator.decide.snapshot import Snapshot
from darkroom_operator.objects import Object

USER: Final = 65532
GPU: Final = "nvidia.com/gpu"
_CA_DIRECTORY: Final = "/etc/darkroom-ca"
_CA_FILE: Final = "ca.crt"
_SHARED_MEMORY: Final = "shared-memory"
"""What GPUs that cannot reach each other exchange gradients through; a container's own has 64 MiB."""
_CREDENTIALS: Final = (("AWS_ACCESS_KEY_ID", False), ("AWS_SECRET_ACCESS_KEY", False), ("AWS_SESSION_TOKEN", True))
"""Keys of the credentials' Secret, and whether each may be missing."""


def pod_template(snapshot: Snapshot, spec: TrainingSpec, config: Config) -> Object:
    """Build the template of a run's pods."""
    return {
        "metadata": {"labels": run_labels(snapshot)},
        "spec": {
            **_placement(spec.compute),
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": spec.compute.termination_grace_period_seconds,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **_surroundings(config),
            "containers": [_container(spec, config)],
            "volumes": _volumes(snapshot.child, spec),
        },
    }


def _placement(compute: Compute) -> Object:
    tolerations = [entry.model_dump(by_alias=True, exclude_none=True) for entry in compute.tolerations]
    placement = {
        "nodeSelector": dict(compute.node_selector),
        "tolerations": tolerations,
        "priorityClassName": compute.priority_class_name,
        "serviceAccountName": compute.service_account_name,
    }
    return {name: value for name, value in placement.items() if value}


def _surroundings(config: Config) -> Object:
    found: Object = {}
    if config.trainer_image_pull_secrets:
        found["imagePullSecrets"] = [{"name": name} for name in config.trainer_image_pull_secrets]
    if config.host_aliases:
        found["hostAliases"] = [{"ip": alias.ip, "hostnames": [alias.name]} for alias in config.host_aliases]
    return found


def _container(spec: TrainingSpec, config: Config) -> Object:
    mounts = [
        {"name": "plan", "mountPath": PLAN_DIRECTORY, "readOnly": True},
        {"name": "work", "mountPath": WORK_DIRECTORY},
    ]
    if spec.storage.ca_bundle:
        mounts.append({"name": "ca", "mountPath": _CA_DIRECTORY, "readOnly": True})
    if spec.compute.gpus > 1:
        mounts.append({"name": _SHARED_MEMORY, "mountPath": "/dev/shm"})  # noqa: S108 - it is the container's own
    return {
        "name": TRAINER_CONTAINER,
        "image": config.trainer_image,
        "imagePullPolicy": config.trainer_image_pull_policy,
        "env": [*_environment(spec.storage, spec.compute), *_tracker_keys(spec.trackers)],
        "ports": [{"name": "progress", "containerPort": PROGRESS_PORT, "protocol": "TCP"}],
        "resources": _resources(spec.compute),
        "volumeMounts": mounts,
        "terminationMessagePath": TERMINATION_MESSAGE_PATH,
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _environment(storage: Storage, compute: Compute) -> list[Object]:
    values = {
        "DARKROOM_PLAN": f"{PLAN_DIRECTORY}/{PLAN_FILE}",
        "DARKROOM_WORK": WORK_DIRECTORY,
        "DARKROOM_PORT": str(PROGRESS_PORT),
        "DARKROOM_TERMINATION_LOG": TERMINATION_MESSAGE_PATH,
        "HOME": f"{WORK_DIRECTORY}/home",
        "TMPDIR": f"{WORK_DIRECTORY}/tmp",  # noqa: S108 - below the pod's own volume
    }
    if threads := _whole_cpus(compute):
        # Without it every library counts the node's cores, and a limited container stalls in its own threads.
        values["OMP_NUM_THREADS"] = str(threads)
    if storage.ca_bundle:
        values["AWS_CA_BUNDLE"] = f"{_CA_DIRECTORY}/{_CA_FILE}"
    environment: list[Object] = [{"name": name, "value": value} for name, value in values.items()]
    environment.append({"name": "DARKROOM_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    if storage.credentials:
        secret = storage.credentials.secret_name
        environment += [_secret(secret, key, optional=optional) for key, optional in _CREDENTIALS]
    return environment


def _tracker_keys(trackers: Sequence[Tracker]) -> list[Object]:
    return [
        _secret(tracker.credentials.secret_name, key, optional=optional)
        for tracker in trackers
        if tracker.credentials
        for key, optional in tracker.keys
    ]


def _secret(name: str, key: str, *, optional: bool) -> Object:
    reference: Object = {"name": name, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": key, "valueFrom": {"secretKeyRef": reference}}


def _resources(compute: Compute) -> Object:
    given = compute.resources
    requests: Object = {name: str(quantity) for name, quantity in given.requests.items()}
    limits: Object = {name: str(quantity) for name, quantity in given.limits.items()}
    if compute.gpus:
        requests[GPU] = limits[GPU] = str(compute.gpus)
    return {name: value for name, value in (("requests", requests), ("limits", limits)) if value}


def _whole_cpus(compute: Compute) -> int | None:
    quantity = str(compute.resources.limits.get("cpu") or compute.resources.requests.get("cpu") or "")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", quantity)
    if not found:
        return None
    return max(1, math.ceil(float(found[1]) / (1000 if found[2] else 1)))


def _volumes(child: str, spec: TrainingSpec) -> list[Object]:
    volumes: list[Object] = [
        {"name": "plan", "configMap": {"name": child}},
        {"name": "work", "emptyDir": {"sizeLimit": spec.compute.scratch_size}},
    ]
    if spec.compute.gpus > 1:
        volumes.append({"name": _SHARED_MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}})
    if bundle := spec.storage.ca_bundle:
        items = [{"key": bundle.key, "path": _CA_FILE}]
        volumes.append({"name": "ca", "configMap": {"name": bundle.config_map_name, "items": items}})
    return volumes
