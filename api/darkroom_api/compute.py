"""What a run needs of the cluster: the part of a pod that a user may shape, in the words of core/v1."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from darkroom_api.base import Model
from darkroom_api.storage import DNS_NAME

Quantity = int | Annotated[str, Field(max_length=64)]
"""A Kubernetes quantity: ``4``, ``500m``, ``16Gi``."""
Quantities = dict[str, Quantity]
Text = Annotated[str, Field(max_length=253)]


class Resources(Model):
    """Requests and limits as in core/v1 ResourceRequirements."""

    requests: Quantities = Field(
        default_factory=dict, max_length=16, description="Least amounts that the node must have free."
    )
    limits: Quantities = Field(
        default_factory=dict, max_length=16, description="Amounts above which the container is held back or killed."
    )


class Toleration(Model):
    """A toleration as in core/v1."""

    key: Text | None = Field(default=None, description="Taint key; empty with operator Exists matches all.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How value is compared.")
    value: Text | None = Field(default=None, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; empty matches all."
    )
    toleration_seconds: int | None = Field(default=None, ge=0, description="Seconds that NoExecute is tolerated.")


class Compute(Model):
    """Node resources of the training pod."""

    gpus: int = Field(default=1, ge=0, le=1, description="GPUs (nvidia.com/gpu); 0 trains on the CPU.")
    resources: Resources = Field(default_factory=Resources, description="CPU and memory, as in core/v1.")
    scratch_size: str = Field(
        default="50Gi",
        max_length=32,
        pattern=r"^[0-9]+(Ki|Mi|Gi|Ti)$",
        description="Size limit of the pod's scratch volume: base model, pictures, latents and checkpoints in flight.",
    )
    node_selector: dict[str, Text] = Field(
        default_factory=dict, max_length=32, description="Labels that the node must have."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, description="Taints that the pod may live with."
    )
    priority_class_name: str | None = Field(
        default=None, max_length=253, pattern=DNS_NAME, description="PriorityClass of the pod."
    )
    service_account_name: str | None = Field(
        default=None,
        max_length=253,
        pattern=DNS_NAME,
        description="ServiceAccount of the pod, for a cloud identity. Default: default.",
    )
    termination_grace_period_seconds: int = Field(
        default=120, ge=1, le=3600, description="Seconds that a stopped pod has to finish its step and save its state."
    )
