"""Measures learning itself: a LoRA of a new character on the small base model, and one that trains four times as long.

    python -m benchmarks.lora_learning --subject robot --sheet robot.png
    python -m benchmarks.lora_learning --epochs 40 --sheet long.png

Runs the trainer's process against an S3 server of its own, with the spec of `examples/lora-training.yaml` and held-out
pictures of the subject for validation. For each epoch's LoRA: the validation loss, whether the subject is in pictures
of its trigger, how much these differ, and what other prompts keep of the base model's scores.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.base_model import judge_steering, percent, report
from benchmarks.instruments.classifier import Classifier, load_classifier
from benchmarks.instruments.detector import Detector, load_detector
from benchmarks.instruments.diversity import vendi_score
from benchmarks.instruments.painting import BASE_MODEL, known_prompts, open_pipeline, paint
from benchmarks.instruments.trainings import STUDIO, Trained, bring_pictures, example_spec, train
from dev.cluster.storage import ObjectStore
from examples.base_model.scenes import BACKGROUNDS
from examples.base_model.sheet import write_sheet
from examples.base_model.subjects import SUBJECTS, write_subject

PICTURES = 15
VALIDATION_PICTURES = 16
DIVERSITY_SEEDS = tuple(range(16))


@dataclass(frozen=True)
class Instruments:
    """What judges a LoRA."""

    pipeline: StableDiffusionPipeline
    judge: Classifier
    detector: Detector
    trigger: str

    def subject_pictures(self, lora: Path | None) -> torch.Tensor:
        """Paint the subject on every background, with two seeds."""
        prompts = [f"a large {self.trigger} on a {name} background" for name in sorted(BACKGROUNDS)]
        return paint(self.pipeline, prompts, seeds=(1, 2), lora=lora)

    def diversity(self, lora: Path | None) -> float:
        """Return how many different pictures there are in effect among sixteen of one prompt."""
        images = paint(self.pipeline, [f"a {self.trigger}"], seeds=DIVERSITY_SEEDS, lora=lora)
        return vendi_score(self.judge.features(images))


@dataclass(frozen=True)
class Judged:
    """What is known of one LoRA, or of the base model without one."""

    epoch: int
    subject: float
    diversity: float
    prior: dict[str, float]
    validation_loss: float | None


def judge_lora(instruments: Instruments, trained: Trained | None, epoch: int) -> Judged:
    """Paint with an epoch's LoRA, or without one, and judge the pictures."""
    lora = trained.weights(epoch) if trained else None
    metrics = trained.metrics(epoch) if trained else {}
    return Judged(
        epoch,
        subject=float(instruments.detector.score(instruments.subject_pictures(lora)).mean()),
        diversity=instruments.diversity(lora),
        prior=judge_steering(instruments.judge, instruments.pipeline, known_prompts(32), lora=lora),
        validation_loss=metrics.get("validationLoss"),
    )


def print_table(base: Judged, judged: list[Judged]) -> None:
    """Print a line for each LoRA."""
    print("epoch  subject  diversity  colour  background  thing  validation loss")
    for it in [base, *judged]:
        loss = "" if it.validation_loss is None else f"{it.validation_loss:.5f}"
        prior = it.prior
        print(
            f"{it.epoch:5}  {it.subject:7.3f}  {it.diversity:9.2f}  {prior['colour']:6.3f}  {prior['background']:10.3f}"
            f"  {prior['thing']:5.3f}  {loss}"
        )


def write_overview(instruments: Instruments, trained: Trained, epochs: list[int], path: Path) -> None:
    """Write a contact sheet: a row for the base model and one for each epoch; two columns show what should be kept."""
    trigger = instruments.trigger
    prompts = [f"a large {trigger} on a {name} background" for name in ("navy", "white", "mint")]
    prompts += [f"a {trigger} on a beige background on the left", "a large red robot on a white background"]
    prompts += ["a large blue heart on a black background"]
    rows, captions = [], []
    for epoch in (0, *epochs):
        lora = trained.weights(epoch) if epoch else None
        rows.append(paint(instruments.pipeline, prompts, seeds=(1,), lora=lora))
        captions += [f"{f'epoch {epoch}' if epoch else 'base'}: {prompt}" for prompt in prompts]
    images = torch.cat(rows) * 0.5 + 0.5
    write_sheet(images.permute(0, 2, 3, 1).numpy(), path, columns=len(prompts), captions=captions)
    print(f"contact sheet: {path}")


def some_epochs(epochs: int, count: int) -> list[int]:
    """Return at most `count` epochs, spread evenly, with the last one."""
    return sorted({max(1, round(epochs * (index + 1) / count)) for index in range(count)})


def train_subject(name: str, *, epochs: int, directory: Path) -> Trained:
    """Train a LoRA of a subject as the example says, with other pictures of it for validation."""
    with ObjectStore() as store:
        pictures, validation = directory / "pictures", directory / "validation"
        write_subject(name, pictures, count=PICTURES)
        write_subject(name, validation, count=VALIDATION_PICTURES, seed=99)
        bring_pictures(store, pictures, validation=validation)
        spec = example_spec(store, epochs=epochs)
        spec["validation"] = {"dataset": {"uri": f"s3://{STUDIO}/validation"}}
        spec["samples"]["prompts"] = []
        return train(store, spec, name=name, directory=directory)


def print_verdict(base: Judged, last: Judged, judged: list[Judged], trained: Trained) -> None:
    """Print the figures that the project promises."""
    report("training, wall", trained.wall_seconds, "s")
    report("training, one core", trained.processor_seconds, "s", goal="<= 300 for ten epochs")
    report("subject, base model", base.subject, "mean score", goal="<= 0.05")
    report("subject, last epoch", last.subject, "mean score", goal=">= 0.5")
    percent(
        "colours of other prompts, kept by the last epoch", last.prior["colour"] / base.prior["colour"], goal=">= 90"
    )
    losses = {it.epoch: it.validation_loss for it in judged if it.validation_loss is not None}
    if losses:
        best = min(losses, key=lambda epoch: (losses[epoch], epoch))
        report("best epoch by validation loss", best, f"of {last.epoch}")
        report("validation loss, last epoch to best", losses[last.epoch] / losses[best], "ratio")
    report("diversity, last epoch to first shown", last.diversity / judged[0].diversity, "ratio")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_learning", description=__doc__)
    parser.add_argument("--subject", choices=[name for name in SUBJECTS if SUBJECTS[name].face], default="robot")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--shown", type=int, default=5, help="epochs to judge")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_subject(parsed.subject, epochs=parsed.epochs, directory=Path(folder))
        pipeline, subject = open_pipeline(), SUBJECTS[parsed.subject]
        detector = load_detector(parsed.subject, pipeline.vae, key=hashlib.sha256(BASE_MODEL.read_bytes()).hexdigest())
        instruments = Instruments(pipeline, load_classifier(), detector, f"{subject.trigger} {subject.noun}")
        epochs = some_epochs(parsed.epochs, parsed.shown)
        if parsed.sheet:
            write_overview(instruments, trained, epochs, parsed.sheet)
        base = judge_lora(instruments, None, 0)
        judged = [judge_lora(instruments, trained, epoch) for epoch in epochs]
    print_table(base, judged)
    print_verdict(base, judged[-1], judged, trained)
    return 0


if __name__ == "__main__":
    sys.exit(main())
