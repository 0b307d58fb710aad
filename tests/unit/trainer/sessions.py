"""Sessions on the tiny model and a few pictures, for tests of what happens in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from darkroom_api.kinds import TRAININGS
from darkroom_trainer.batches import arrange
from darkroom_trainer.dataset import scan
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.hardware import open_accelerator
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.session import Session, open_session
from darkroom_trainer.weights_file import WeightsFile
from tests.builders.pictures import write_masks, write_pictures

TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batchSize": 2,
    "resolution": 96,
    "buckets": {"minimum": 64, "maximum": 128, "step": 32},
    "optimizer": {"type": "AdamW", "learningRate": 2e-3},
    "schedule": {"type": "Cosine", "warmupSteps": 2},
    "objective": {"minSnrGamma": 5},
    "captions": {"shuffle": True, "keepTokens": 1, "dropout": 0.2},
}
OWN_FIELDS: dict[str, dict[str, Any]] = {
    "LoraTraining": {"network": {"type": "LoRA", "rank": 4, "alpha": 2}},
    "ModelTraining": {},
    "EmbeddingTraining": {"embedding": {"token": "sks", "numVectors": 2}},
}
"""Of the spec of each kind."""
SPECS = {kind.name: kind.spec for kind in TRAININGS}


class Maker:
    """Opens sessions of every kind on the same pictures."""

    def __init__(self, load_model: Callable[..., StableDiffusion], directory: Path) -> None:
        self._load, self._directory = load_model, directory
        self._pictures = write_masks(write_pictures(directory / "pictures"))

    def __call__(
        self,
        kind: str = "LoraTraining",
        *,
        inputs: str = "same",
        fields: dict[str, Any] | None = None,
        network: dict[str, Any] | None = None,
        validation: dict[str, Any] | None = None,
        family: str = "SD15",
        initial: WeightsFile | None = None,
        **training: Any,
    ) -> Session:
        AcceleratorState._reset_state(reset_partial_state=True)
        own = OWN_FIELDS[kind] | ({"network": network} if network else {}) | (fields or {})
        spec = SPECS[kind].model_validate(
            {
                "baseModel": {"uri": "s3://abc/m"},
                "dataset": {"uri": "s3://abc/d"},
                "output": {"uri": "s3://abc/o"},
                "training": TRAINING | training,
                "validation": validation,
                **own,
            }
        )
        dtype = {"FP32": torch.float32, "BF16": torch.bfloat16}[spec.training.precision]
        model, course = (
            self._load(dtype, family=family),
            arrange(
                scan(self._pictures, mask=spec.training.mask),
                spec.training,
                validation=spec.validation,
                processes=spec.compute.num_processes,
            ),
        )
        latents = LatentCache(self._directory / f"latents-{family}", model.vae, mask=course.mask)
        latents.fill(course.known_ahead, on_item=lambda _: None)
        accelerator = open_accelerator(spec.training.precision, gpus=0)
        return open_session(
            spec, course, model, latents=latents, accelerator=accelerator, inputs=inputs, initial=initial
        )


def weights(session: Session) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in session.trainee.named_parameters().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
