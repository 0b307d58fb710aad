"""Measures what an embedding learns: a word for a new character, on the small base model that stays as it is.

    python -m benchmarks.embedding_learning --sheet robot.png

Runs the trainer's process against an S3 server of its own, with the spec of `examples/embedding-training.yaml`, without
its samples and with other pictures of the subject for validation. An embedding can only call what the model knows: the
robot's colours and stripes, but not its one eye and its horns, which the denoiser has never seen. So what counts is
whether pictures of the word have the subject's colours; the detector's score, which asks for all of it, stands beside.
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
from benchmarks.instruments.painting import BASE_MODEL, open_pipeline, open_with_embedding, paint
from benchmarks.instruments.scores import report_classifier, report_detector
from benchmarks.instruments.trainings import STUDIO, Trained, bring_inputs, example_spec, train
from benchmarks.lora_learning import PICTURES, VALIDATION_PICTURES, best_epoch
from benchmarks.reporting import percent, report
from dev.cluster.storage import ObjectStore
from examples.base_model.sheet import write_sheet
from examples.base_model.subjects import SUBJECTS, Character, write_subject

EXAMPLE = "embedding-training.yaml"
NAME = "robot"
SEEDS = (1, 2)


@dataclass(frozen=True)
class Judged:
    """What pictures of the word show."""

    subject: float
    """Mean score of the detector."""
    colours: float
    """Share of pictures with the subject's colours and no others."""
    thing: float
    """Share of pictures with its thing, which the prompts name beside the word."""


def judge(images: torch.Tensor, *, classifier: Classifier, detector: Detector) -> Judged:
    """Judge pictures of the subject's prompts."""
    subject = SUBJECTS[NAME]
    assert isinstance(subject, Character)
    read = classifier.read(images)
    return Judged(
        subject=float(detector.score(images).mean()),
        colours=sum(it.colours == set(subject.colours) for it in read) / len(read),
        thing=sum(it.thing == subject.noun for it in read) / len(read),
    )


def train_word(*, epochs: int | None, directory: Path) -> Trained:
    """Train a word as the example says, with other pictures of the subject for validation."""
    with ObjectStore() as store:
        pictures, validation = directory / "pictures", directory / "validation"
        write_subject(NAME, pictures, count=PICTURES)
        write_subject(NAME, validation, count=VALIDATION_PICTURES, seed=99)
        bring_inputs(store, BASE_MODEL, pictures, validation=validation)
        spec = example_spec(store, example=EXAMPLE, **({"epochs": epochs} if epochs else {}))
        spec["validation"] = {"dataset": {"uri": f"s3://{STUDIO}/validation"}}
        spec["samples"]["prompts"] = []
        return train(store, spec, name=NAME, kind="EmbeddingTraining", directory=directory)


def write_overview(pictures: dict[str, torch.Tensor], path: Path) -> None:
    """Write a contact sheet: a row for the base model and one for each embedding."""
    prompts = [prompt for prompt in SUBJECTS[NAME].prompts() for _ in SEEDS]
    images = torch.cat(list(pictures.values())) * 0.5 + 0.5
    captions = [f"{what}: {prompt}" for what in pictures for prompt in prompts]
    write_sheet(images.permute(0, 2, 3, 1).numpy(), path, columns=len(prompts), captions=captions)
    print(f"contact sheet: {path}", flush=True)


def print_verdict(judged: dict[str, Judged], trained: Trained) -> None:
    """Print the figures that the project promises."""
    losses = trained.validation_losses()
    report("training, one core", trained.processor_seconds, "s")
    for what, it in judged.items():
        goal = "" if what == "base model" else ">= 90"
        percent(f"{what}, the subject's colours", it.colours, goal=goal)
        percent(f"{what}, its thing", it.thing)
        report(f"{what}, all of the subject", it.subject, "mean score")
    print("validation loss by epoch: " + " ".join(f"{epoch}:{loss:.4f}" for epoch, loss in losses.items()))
    report("best epoch by validation loss", best_epoch(losses), f"of {max(losses)}")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding_learning", description=__doc__)
    parser.add_argument("--epochs", type=int, help="instead of the example's")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    prompts, token = SUBJECTS[NAME].prompts(), SUBJECTS[NAME].trigger
    with tempfile.TemporaryDirectory() as folder:
        trained = train_word(epochs=parsed.epochs, directory=Path(folder))
        last = max(trained.validation_losses())
        pipelines: dict[str, StableDiffusionPipeline] = {"base model": open_pipeline()}
        for epoch in sorted({1, best_epoch(trained.validation_losses()), last}):
            pipelines[f"epoch {epoch}"] = open_with_embedding(trained.weights(epoch), token)
    classifier, detector = load_classifier(), load_detector(NAME, open_pipeline().vae)
    report_classifier(classifier)
    report_detector(detector, NAME, open_pipeline())
    pictures = {what: paint(pipeline, prompts, seeds=SEEDS) for what, pipeline in pipelines.items()}
    if parsed.sheet:
        write_overview(pictures, parsed.sheet)
    judged = {what: judge(images, classifier=classifier, detector=detector) for what, images in pictures.items()}
    print_verdict(judged, trained)
    return 0


if __name__ == "__main__":
    sys.exit(main())
