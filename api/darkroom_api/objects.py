"""JSON objects in the store that more than one part reads: manifests and the index of a run."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from darkroom_api.base import Model
from darkroom_api.progress import CheckpointRecord, Loss, Plan


class FileRecord(Model):
    """A file that a manifest vouches for."""

    name: str = Field(min_length=1, max_length=255, description="Name inside the manifest's directory.")
    size_bytes: int = Field(ge=0, description="Size.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the content.")


class Manifest(Model):
    """``manifest.json``: written last, with ``If-None-Match: *``; a directory without it does not exist."""

    run: str = Field(description="The run id.")
    epoch: int = Field(ge=0, description="Epochs completed.")
    step: int = Field(ge=0, description="Optimizer steps done.")
    files: list[FileRecord] = Field(description="Every file of the directory, by name.")
    validation_loss: Loss | None = Field(
        default=None, description="Of a checkpoint: its loss over the validation pictures, if measured."
    )


class ValidationRecord(Model):
    """A point of the validation curve."""

    epoch: int = Field(ge=0, description="Epochs completed; 0 is before training.")
    loss: Loss = Field(description="Mean loss over the validation pictures.")


class Index(Model):
    """``index.json``: all checkpoints of a run, rewritten after each."""

    run: str = Field(description="The run id.")
    name: str = Field(description="Name of the resource.")
    plan: Plan | None = Field(default=None, description="What the dataset meant in steps.")
    checkpoints: list[CheckpointRecord] = Field(default_factory=list, description="Oldest first.")
    validations: list[ValidationRecord] = Field(
        default_factory=list, description="The whole validation curve, oldest first."
    )
    best_epoch: int | None = Field(
        default=None, ge=1, description="Epoch of the least validation loss among the checkpoints."
    )
    updated: datetime = Field(description="When it was written.")
