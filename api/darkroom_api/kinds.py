"""The kinds of resources: one row per kind, from which CRDs, RBAC rules and the operator's watches follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from darkroom_api.base import Model
from darkroom_api.embedding_training import EmbeddingTrainingSpec
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.model_training import ModelTrainingSpec
from darkroom_api.status import TrainingStatus
from darkroom_api.training import MUTABLE_FIELDS, TrainingSpec

Column = dict[str, Any]

_TRAINING_COLUMNS: tuple[Column, ...] = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Epoch", "type": "integer", "jsonPath": ".status.progress.epoch"},
    {
        "name": "Progress",
        "type": "integer",
        "jsonPath": ".status.progress.percentage",
        "description": "Per cent of the steps.",
    },
    {"name": "Loss", "type": "number", "jsonPath": ".status.progress.loss"},
    {
        "name": "ETA",
        "type": "integer",
        "jsonPath": ".status.progress.estimatedRemainingSeconds",
        "description": "Seconds to the end.",
    },
    {
        "name": "Best",
        "type": "integer",
        "jsonPath": ".status.bestEpoch",
        "description": "Epoch of the least validation loss.",
        "priority": 1,
    },
    {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason", "priority": 1},
    {"name": "Output", "type": "string", "jsonPath": ".status.output", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the API server must know of a kind."""

    name: str
    plural: str
    short: str
    description: str
    spec: type[Model]
    status: type[Model]
    columns: tuple[Column, ...]
    mutable_fields: frozenset[str] = field(default_factory=frozenset)

    @property
    def singular(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class TrainingKind(Kind):
    """A kind of training: one GPU Job that reports epochs, and a spec and status of trainings."""

    spec: type[TrainingSpec]
    status: type[TrainingStatus] = TrainingStatus
    columns: tuple[Column, ...] = _TRAINING_COLUMNS
    mutable_fields: frozenset[str] = MUTABLE_FIELDS


LORA_TRAINING = TrainingKind(
    name="LoraTraining",
    plural="loratrainings",
    short="lora",
    description="Trains a LoRA on a set of pictures; each epoch's checkpoint and samples go to an S3 store.",
    spec=LoraTrainingSpec,
)
MODEL_TRAINING = TrainingKind(
    name="ModelTraining",
    plural="modeltrainings",
    short="mt",
    description="Trains a whole model on a set of pictures, by fine-tuning or DreamBooth; each epoch's checkpoint and "
    "samples go to an S3 store.",
    spec=ModelTrainingSpec,
)
EMBEDDING_TRAINING = TrainingKind(
    name="EmbeddingTraining",
    plural="embeddingtrainings",
    short="emb",
    description="Trains an embedding, a new word for the base model, on a set of pictures by textual inversion; each "
    "epoch's checkpoint and samples go to an S3 store.",
    spec=EmbeddingTrainingSpec,
)

TRAININGS: tuple[TrainingKind, ...] = (LORA_TRAINING, MODEL_TRAINING, EMBEDDING_TRAINING)
KINDS: tuple[Kind, ...] = (*TRAININGS,)
