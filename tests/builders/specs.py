"""The least that each kind of training must be given."""

from __future__ import annotations

from typing import Any

MINIMAL: dict[str, Any] = {
    "baseModel": {"uri": "s3://models/base.safetensors"},
    "dataset": {"uri": "s3://studio/pictures"},
    "output": {"uri": "s3://studio/results"},
}
"""Of every training."""

REQUIRED: dict[str, dict[str, Any]] = {
    "LoraTraining": MINIMAL,
    "ModelTraining": MINIMAL,
    "EmbeddingTraining": MINIMAL | {"embedding": {"token": "sks"}},
}
