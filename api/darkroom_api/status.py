"""The status of a training as users, Helm, Argo CD and Flux read it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field

from darkroom_api.base import Model
from darkroom_api.failures import FailureReason
from darkroom_api.memory import Memory
from darkroom_api.progress import Plan


class Phase(StrEnum):
    """Where a run is, in one word."""

    PENDING = "Pending"
    WAITING = "Waiting"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


TERMINAL_PHASES = frozenset({Phase.SUCCEEDED, Phase.FAILED})
"""Phases that are latched: nothing that happens afterwards changes them."""


class ConditionType(StrEnum):
    """Types of ``status.conditions``."""

    READY = "Ready"
    """True only at success; False with a reason from the first reconcile on. Read by kstatus, Helm and Flux."""
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    PROGRESSING = "Progressing"
    REFERENCES_RESOLVED = "ReferencesResolved"
    STALLED = "Stalled"
    """Present, and True, only after a terminal failure: kstatus gives up at once when it sees it."""


class Condition(Model):
    """A condition as in metav1."""

    type: str = Field(max_length=316, description="What the condition is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(max_length=1024, description="One CamelCase word why.")
    message: str = Field(default="", max_length=32768, description="Why, for a person.")
    last_transition_time: datetime = Field(description="When status last changed.")
    observed_generation: int | None = Field(
        default=None, description="The generation that the condition was computed from."
    )


class Failure(Model):
    """Why the run failed and what to do about it."""

    reason: FailureReason = Field(description="One word for the cause.")
    message: str = Field(max_length=2048, description="What happened: path, given, allowed.")
    advice: str = Field(max_length=1024, description="What to do, in one sentence.")
    exit_code: int | None = Field(default=None, description="Exit code of the trainer, if it ran.")
    pod: str | None = Field(default=None, max_length=253, description="Name of the pod, for its log.")


class AttemptStatus(Model):
    """The newest pod that a node took over; a replacement that is older was counted before."""

    pod: str = Field(max_length=253, description="Name of the pod, for its log.")
    created: datetime = Field(description="When the pod was created.")


class ProgressStatus(Model):
    """Live progress, at most a few seconds old."""

    stage: str = Field(max_length=64, description="What the pod is doing.")
    epoch: int = Field(description="Epoch being trained, from 1; 0 before the first.")
    step: int = Field(description="Optimizer steps done.")
    total_steps: int = Field(description="Optimizer steps of the whole run.")
    percentage: int = Field(ge=0, le=100, description="Share of the steps done.")
    steps_per_second: float | None = Field(default=None, description="Speed over the last steps.")
    estimated_remaining_seconds: int | None = Field(default=None, description="Time to the end at the present speed.")
    loss: float | None = Field(default=None, description="Mean loss of the last steps.")
    validation_loss: float | None = Field(default=None, description="Loss of the last validation.")
    learning_rate: float | None = Field(default=None, description="Learning rate of the last step.")
    last_updated_time: datetime = Field(description="When the pod reported this.")


class CheckpointStatus(Model):
    """A checkpoint that lies complete and verified in the store."""

    epoch: int = Field(description="Epoch after which it was taken.")
    step: int = Field(description="Optimizer steps done by then.")
    uri: str = Field(max_length=2048, description="Address of the file.")
    sha256: str = Field(max_length=64, description="SHA-256 of the file.")
    size_bytes: int = Field(description="Size of the file.")
    validation_loss: float | None = Field(
        default=None, description="Loss over the validation pictures, if spec.validation asks for it; less is better."
    )
    samples: list[str] = Field(
        default_factory=list, max_length=256, description="Addresses of the sample pictures of the epoch."
    )


class TrainingStatus(Model):
    """What is known of a training."""

    # Newer releases may add fields; an older operator reads and keeps what it knows.
    model_config = ConfigDict(extra="ignore")

    observed_generation: int = Field(default=-1, description="The generation that this status describes.")
    phase: Phase | None = Field(default=None, description="Where the run is, in one word.")
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        description="Details, by type.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    start_time: datetime | None = Field(default=None, description="When the first pod began to run.")
    completion_time: datetime | None = Field(default=None, description="When the run reached its end.")
    attempts: int = Field(default=0, description="Pods that have been started for this run.")
    last_attempt: AttemptStatus | None = Field(default=None, description="The newest of these pods.")
    job_name: str | None = Field(default=None, max_length=63, description="Name of the Job.")
    failure: Failure | None = Field(default=None, description="Why the run failed, or why its last attempt did.")
    plan: Plan | None = Field(default=None, description="What the dataset turned out to mean in steps.")
    progress: ProgressStatus | None = Field(default=None, description="Live progress.")
    memory: Memory | None = Field(default=None, description="What the run needs of its device's memory.")
    checkpoints: list[CheckpointStatus] = Field(
        default_factory=list,
        max_length=64,
        description="Checkpoints in the store, oldest first: the newest 64, the best epoch's always among them.",
    )
    best_epoch: int | None = Field(
        default=None,
        description="Epoch whose checkpoint has the least validation loss, the earliest of equals. Only with "
        "spec.validation.",
    )
    output: str | None = Field(default=None, max_length=2048, description="Where everything of this run lies.")


MAXIMUM_CHECKPOINTS = 64
"""Checkpoints that a status lists; ``index.json`` in the store has them all."""
