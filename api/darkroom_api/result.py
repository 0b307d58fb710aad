"""The last word of a pod: its termination message, at most 4096 bytes of JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from darkroom_api.base import Model
from darkroom_api.failures import FailureReason
from darkroom_api.memory import Memory
from darkroom_api.names import TERMINATION_MESSAGE_BYTES
from darkroom_api.progress import CheckpointRecord, EarlyStop, Plan


class RunFailure(Model):
    """Why the process ended without success."""

    reason: FailureReason = Field(description="One word for the cause.")
    message: str = Field(max_length=1024, description="What happened: path, given, allowed.")
    advice: str = Field(max_length=512, description="What to do, in one sentence.")


class RunResult(Model):
    """How the process ended."""

    run: str = Field(max_length=63, description="The run id.")
    outcome: Literal["Succeeded", "Preempted", "Failed"] = Field(description="How it ended.")
    step: int = Field(default=0, ge=0, description="Optimizer steps done.")
    epoch: int = Field(default=0, ge=0, description="Epochs completed.")
    plan: Plan | None = Field(default=None, description="What the dataset meant in steps.")
    checkpoints: list[CheckpointRecord] = Field(
        default_factory=list, description="Checkpoints in the store, oldest first; as many of the newest as fit."
    )
    best_epoch: int | None = Field(
        default=None, ge=1, description="Epoch of the least validation loss among those with a checkpoint in the store."
    )
    memory: Memory | None = Field(default=None, description="What is known of the run's memory.")
    stopped_early: EarlyStop | None = Field(default=None, description="Why, if epochs were left out.")
    failure: RunFailure | None = Field(default=None, description="Why, if it failed.")


def encode_result(result: RunResult) -> bytes:
    """Encode a result for the termination message, leaving out the oldest checkpoints until it fits."""
    while len(data := result.model_dump_json(by_alias=True, exclude_none=True).encode()) > TERMINATION_MESSAGE_BYTES:
        if result.checkpoints:
            result = result.model_copy(update={"checkpoints": result.checkpoints[1:]})
        elif result.plan and (result.plan.buckets or result.plan.advice):
            result = result.model_copy(update={"plan": result.plan.model_copy(update={"buckets": [], "advice": []})})
        else:
            assert result.failure, "an outcome without lists is small"
            shorter = result.failure.model_copy(
                update={"message": result.failure.message[: len(result.failure.message) // 2]}
            )
            result = result.model_copy(update={"failure": shorter})
    return data


def decode_result(text: str) -> RunResult | None:
    """Decode a termination message; None if it is none of ours (a kubelet may put log lines there)."""
    try:
        return RunResult.model_validate_json(text)
    except ValidationError:
        return None
