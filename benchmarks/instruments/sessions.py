"""Sessions of the trainer on a model and pictures of the disk, and a program that trains in one and tells its steps.

    python -m benchmarks.instruments.sessions MODEL SPEC.json PICTURES STEPS

It is what `benchmarks.trainer_overhead` runs beside other trainers' programs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.progress import Stage
from darkroom_trainer.batches import arrange
from darkroom_trainer.dataset import scan
from darkroom_trainer.families.loading import load_path
from darkroom_trainer.hardware import BASE_DTYPES, open_accelerator
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.session import Session, open_session
from darkroom_trainer.stopping import StopSignal


def open_run(model: Path, spec: LoraTrainingSpec, *, pictures: Path, folder: Path) -> Session:
    """Do what the trainer does before its first step, from a model and pictures that are there already."""
    accelerator = open_accelerator(spec.training.precision, gpus=int(torch.cuda.is_available()))
    course = arrange(scan(pictures), spec.training)
    loaded = load_path(model, dtype=BASE_DTYPES[spec.training.precision], device=accelerator.device)
    latents = LatentCache(folder / "latents", loaded.vae, mask=course.mask)
    latents.fill(course.known_ahead, on_item=lambda _: None)
    return open_session(spec, course, loaded, latents=latents, accelerator=accelerator, inputs="")


@dataclass(frozen=True)
class Loop:
    """A step with all that the trainer's loop does around it."""

    session: Session
    reporter: Reporter
    stop: StopSignal

    def step(self) -> None:
        """Train one step, as `darkroom_trainer.train` does."""
        self.reporter.stage(Stage.TRAINING)
        began = time.monotonic()
        done = self.session.step()
        self.reporter.stepped(
            epoch=self.session.epoch,
            step=self.session.position.step,
            loss=done.loss,
            learning_rate=done.learning_rate,
            seconds=time.monotonic() - began,
        )
        self.stop.check()


def main() -> int:
    """Train so many steps; each is told in the form that `benchmarks.instruments.watching` reads."""
    model, spec, pictures, steps = sys.argv[1:]
    parsed, total = LoraTrainingSpec.model_validate_json(Path(spec).read_text()), int(steps)
    with tempfile.TemporaryDirectory() as folder:
        session = open_run(Path(model), parsed, pictures=Path(pictures), folder=Path(folder))
        loop = Loop(session, Reporter("0123456789", "bench"), StopSignal())
        for done in range(1, total + 1):
            loop.step()
            print(f"steps: {100 * done // total}%|| {done}/{total} [", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
