"""Sessions on the accelerator, for all tests that need one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from darkroom_api.kinds import TRAININGS
from darkroom_trainer.batches import arrange
from darkroom_trainer.dataset import scan
from darkroom_trainer.families.loading import load_path
from darkroom_trainer.hardware import BASE_DTYPES, open_accelerator
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.session import Session, open_session
from tests.builders.models import write_tiny_sd15
from tests.builders.pictures import write_pictures

Make = Callable[..., Session]
OWN_FIELDS: dict[str, dict[str, Any]] = {
    "LoraTraining": {"network": {"type": "LoRA", "rank": 4, "alpha": 4}},
    "ModelTraining": {},
}
SPECS = {kind.name: kind.spec for kind in TRAININGS}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Open sessions on the accelerator."""
    base = write_tiny_sd15(tmp_path / "base.safetensors")
    pictures = scan(write_pictures(tmp_path / "pictures"))

    def open_one(kind: str = "LoraTraining", **training: Any) -> Session:
        AcceleratorState._reset_state(reset_partial_state=True)
        spec = SPECS[kind].model_validate(
            {
                "baseModel": {"uri": "s3://abc/m"},
                "dataset": {"uri": "s3://abc/d"},
                "output": {"uri": "s3://abc/o"},
                "training": {
                    "epochs": 4,
                    "batchSize": 2,
                    "resolution": 96,
                    "buckets": {"minimum": 64, "maximum": 128, "step": 32},
                    "optimizer": {"type": "AdamW", "learningRate": 5e-3},
                    **training,
                },
                **OWN_FIELDS[kind],
            }
        )
        accelerator = open_accelerator(spec.training.precision, gpus=1)
        dtype = torch.float32 if kind == "ModelTraining" else BASE_DTYPES[spec.training.precision]
        model = load_path(base, dtype=dtype, device=accelerator.device)
        course, latents = arrange(pictures, spec.training), LatentCache(tmp_path / "latents", model.vae)
        latents.fill(course.known_ahead, on_item=lambda _: None)
        return open_session(spec, course, model, latents=latents, accelerator=accelerator, inputs="same")

    yield open_one
    torch.use_deterministic_algorithms(mode=False)


def weights(session: Session) -> list[torch.Tensor]:
    return [it.detach().cpu().clone() for it in session.trainee.named_parameters().values()]
