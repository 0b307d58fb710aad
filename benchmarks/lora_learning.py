"""Measures learning itself: what a LoRA of a new character learns on the small base model, what it forgets, and when.

    python -m benchmarks.lora_learning --subject robot --sheet robot.png
    python -m benchmarks.lora_learning --epochs 40 --sheet long.png

Runs the trainer's process against an S3 server of its own, with the spec of `examples/lora-training.yaml`, without its
samples and with other pictures of the subject for validation. Of the epochs shown, and of the best one: whether the
subject is in pictures of its trigger, how much these differ, and what other prompts keep of the base model's scores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.instruments.classifier import Classifier, load_classifier
from benchmarks.instruments.detector import Detector, load_detector
from benchmarks.instruments.diversity import mean_distance, vendi_score
from benchmarks.instruments.painting import BASE_MODEL, known_prompts, open_pipeline, paint
from benchmarks.instruments.scores import report_classifier, report_detector, steering
from benchmarks.instruments.trainings import STUDIO, Trained, bring_inputs, example_spec, train
from benchmarks.reporting import percent, report
from dev.cluster.storage import ObjectStore
from examples.base_model.sheet import write_sheet
from examples.base_model.subjects import SUBJECTS, Subject, write_subject

PICTURES = 15
VALIDATION_PICTURES = 16
DIVERSITY_SEEDS = tuple(range(16))


@dataclass(frozen=True)
class Judged:
    """What is known of one LoRA, or of the base model without one (epoch 0)."""

    epoch: int
    subject: float
    distance: float
    vendi: float
    prior: dict[str, float]


@dataclass(frozen=True)
class Instruments:
    """What judges a LoRA."""

    pipeline: StableDiffusionPipeline
    judge: Classifier
    detector: Detector
    subject: Subject

    def judge_lora(self, trained: Trained, epoch: int) -> Judged:
        """Paint with an epoch's LoRA, or without one, and judge the pictures."""
        lora, prompts = trained.weights(epoch) if epoch else None, self.subject.prompts()
        pictures = paint(self.pipeline, prompts, seeds=(1, 2), lora=lora)
        of_one_prompt = paint(self.pipeline, prompts[:1], seeds=DIVERSITY_SEEDS, lora=lora)
        return Judged(
            epoch,
            subject=float(self.detector.score(pictures).mean()),
            distance=mean_distance(of_one_prompt),
            vendi=vendi_score(self.judge.features(of_one_prompt)),
            prior=steering(self.judge, self.pipeline, known_prompts(32), lora=lora),
        )


def best_epoch(losses: dict[int, float]) -> int:
    """Return the epoch of the least validation loss, the earliest of equals."""
    return min(losses, key=lambda epoch: (losses[epoch], epoch))


def shown_epochs(epochs: int, count: int) -> list[int]:
    """Return at most `count` epochs, spread evenly, the last one among them."""
    count = max(count, 1)
    return sorted({max(1, round(epochs * (index + 1) / count)) for index in range(count)})


def train_subject(name: str, model: Path, *, epochs: int, directory: Path) -> Trained:
    """Train a LoRA of a subject as the example says, with other pictures of it for validation."""
    with ObjectStore() as store:
        pictures, validation = directory / "pictures", directory / "validation"
        write_subject(name, pictures, count=PICTURES)
        write_subject(name, validation, count=VALIDATION_PICTURES, seed=99)
        bring_inputs(store, model, pictures, validation=validation)
        spec = example_spec(store, epochs=epochs)
        spec["validation"] = {"dataset": {"uri": f"s3://{STUDIO}/validation"}}
        spec["samples"]["prompts"] = []
        return train(store, spec, name=name, directory=directory)


def write_overview(instruments: Instruments, trained: Trained, epochs: list[int], path: Path) -> None:
    """Write a contact sheet: a row for the base model and one for each epoch; the last columns should be kept."""
    prompts = [
        *instruments.subject.prompts()[:5],
        "a large orange robot on a white background",
        "a large pink cat on a brown background",
        "a large red heart on a black background",
    ]
    rows, captions = [], []
    for epoch in (0, *epochs):
        lora = trained.weights(epoch) if epoch else None
        rows.append(paint(instruments.pipeline, prompts, seeds=(1,), lora=lora))
        captions += [f"{f'epoch {epoch}' if epoch else 'base'}: {prompt}" for prompt in prompts]
    images = torch.cat(rows) * 0.5 + 0.5
    write_sheet(images.permute(0, 2, 3, 1).numpy(), path, columns=len(prompts), captions=captions)
    print(f"contact sheet: {path}", flush=True)


def print_table(judged: list[Judged], losses: dict[int, float]) -> None:
    """Print a line for each LoRA."""
    print("validation loss by epoch: " + " ".join(f"{epoch}:{loss:.4f}" for epoch, loss in losses.items()))
    print("epoch  subject  distance  vendi  colour  background  thing  validation loss")
    for it in judged:
        prior = it.prior
        print(
            f"{it.epoch:5}  {it.subject:7.3f}  {it.distance:8.3f}  {it.vendi:5.2f}  {prior['colour']:6.3f}"
            f"  {prior['background']:10.3f}  {prior['thing']:5.3f}  {losses.get(it.epoch, float('nan')):.4f}"
        )


def print_verdict(judged: dict[int, Judged], losses: dict[int, float], trained: Trained) -> None:
    """Print the figures that the project promises."""
    last, best, base = max(judged), best_epoch(losses), judged[0]
    is_example = last == 10
    report("training, wall", trained.wall_seconds, "s", goal="<= 300" if is_example else "")
    report("training, one core", trained.processor_seconds, "s")
    report("subject, base model", base.subject, "mean score", goal="<= 0.05")
    report("subject, last epoch", judged[last].subject, "mean score", goal=">= 0.5")
    for aspect in ("colour", "thing", "background"):
        share = judged[last].prior[aspect] / base.prior[aspect]
        percent(f"other prompts keep at the last epoch, {aspect}", share, goal=">= 90" if aspect == "colour" else "")
    report("best epoch by validation loss", best, f"of {last}")
    report("distance of pictures of one prompt, last epoch to best", judged[last].distance / judged[best].distance, "")
    report("validation loss, last epoch to best", losses[last] / losses[best], "ratio")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_learning", description=__doc__)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="robot")
    parser.add_argument("--model", type=Path, default=BASE_MODEL)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--shown", type=int, default=4, help="epochs to judge, besides the best")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_subject(parsed.subject, parsed.model, epochs=parsed.epochs, directory=Path(folder))
        pipeline = open_pipeline(parsed.model)
        instruments = Instruments(
            pipeline, load_classifier(), load_detector(parsed.subject, pipeline.vae), SUBJECTS[parsed.subject]
        )
        report_classifier(instruments.judge)
        report_detector(instruments.detector, parsed.subject, pipeline)
        losses = trained.validation_losses()
        epochs = sorted({*shown_epochs(parsed.epochs, parsed.shown), best_epoch(losses)})
        if parsed.sheet:
            write_overview(instruments, trained, epochs, parsed.sheet)
        judged = {epoch: instruments.judge_lora(trained, epoch) for epoch in (0, *epochs)}
    print_table(list(judged.values()), losses)
    print_verdict(judged, losses, trained)
    return 0


if __name__ == "__main__":
    sys.exit(main())
