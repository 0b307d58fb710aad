"""Names that several parts must agree on: the API group, labels, ports and paths inside the pod."""

from __future__ import annotations

import hashlib
from typing import Final

GROUP: Final = "darkroom.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

LABEL_KIND: Final = f"{GROUP}/kind"
LABEL_NAME: Final = f"{GROUP}/name"
LABEL_RUN: Final = f"{GROUP}/run"
"""Selects every Job, Pod and ConfigMap that Darkroom made; its value is the run id."""

PROGRESS_PORT: Final = 9464
"""TCP port of the pod's ``/progress`` (JSON) and ``/metrics`` (Prometheus)."""

PLAN_DIRECTORY: Final = "/etc/darkroom"
PLAN_FILE: Final = "plan.json"
WORK_DIRECTORY: Final = "/work"
"""Writable scratch of the pod: downloads, latents, checkpoints on their way to the store."""
TERMINATION_MESSAGE_PATH: Final = "/dev/termination-log"
TERMINATION_MESSAGE_BYTES: Final = 4096
"""What a kubelet keeps of a container's termination message."""
TRAINER_CONTAINER: Final = "trainer"

MAXIMUM_NAME_LENGTH: Final = 50
"""Longest name of a resource: with the run id it must still fit into a Job's name of 63 characters."""


def run_id(uid: str) -> str:
    """Return the id of the run that belongs to the resource with this uid: ten hexadecimal digits.

    A resource that is deleted and applied again has a new uid, thus a new run and new object names:
    nothing of an earlier run is ever overwritten.
    """
    return hashlib.sha256(uid.encode()).hexdigest()[:10]


def child_name(name: str, run: str) -> str:
    """Return the name of the Job and of the ConfigMap of a run; the same on every call, so a repeat is a conflict."""
    return f"{name}-{run}"
