"""What a run needs of the cluster: the part of a pod that a user may shape, in the words of core/v1."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

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


_ONE_PER_GPU: Final = "processes is for gpus 0: with GPUs there is one process for each"


class Compute(Model):
    """Node resources of the training pod."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "!has(self.processes) || !has(self.gpus) || self.gpus == 0", "message": _ONE_PER_GPU}
            ]
        }
    )
    gpus: int = Field(
        default=1,
        ge=0,
        le=16,
        description="GPUs (nvidia.com/gpu) of the pod, which share each step: batchSize is each one's. 0 trains on the "
        "CPU.",
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="Processes that share each step on a CPU, where gpus is 0; batchSize is each one's. Default: one.",
    )
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

    @property
    def num_processes(self) -> int:
        """Return how many processes share a step: one for each GPU, or as many as are asked for."""
        return self.processes or max(1, self.gpus)

    @model_validator(mode="after")
    def _one_process_per_gpu(self) -> Self:
        if self.gpus and self.processes is not None:
            raise ValueError(_ONE_PER_GPU)
        return self
