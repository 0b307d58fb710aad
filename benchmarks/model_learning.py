"""Measures what a whole model learns and forgets, with pictures of its class beside the subject's and without.

    python -m benchmarks.model_learning --subject robot
    python -m benchmarks.model_learning --epochs 4 --sheet robot.png

Runs the trainer's process against an S3 server of its own, with the spec of `examples/model-training.yaml`, twice: as
it stands, and without its regularisation. Of both: whether the subject is in pictures of its trigger, whether it is in
pictures of its class, where it does not belong, and what other prompts keep of the base model's scores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.instruments.classifier import Classifier, load_classifier
from benchmarks.instruments.detector import Detector, load_detector
from benchmarks.instruments.painting import BASE_MODEL, known_prompts, open_pipeline, paint
from benchmarks.instruments.scores import report_classifier, report_detector, steering
from benchmarks.instruments.trainings import bring_inputs, example_spec, train
from benchmarks.reporting import percent, report
from dev.cluster.storage import ObjectStore
from examples.base_model.sheet import write_sheet
from examples.base_model.subjects import SUBJECTS, write_subject

EXAMPLE = "model-training.yaml"
PICTURES = 15
CLASS_PROMPTS = 32
SEEDS = (1, 2)
WITHOUT = "without class pictures"
WITH = "with class pictures"


@dataclass(frozen=True)
class Judged:
    """What is known of one model."""

    subject: float
    """Mean score of the detector on pictures of the trigger."""
    leaked: float
    """The same on pictures of the class that do not ask for the subject."""
    kept: dict[str, float]
    """Scores of other prompts, by aspect."""


def judge(model: Path, subject: str, *, detector: Detector, classifier: Classifier, sheet: Path | None) -> Judged:
    """Paint with a model and judge the pictures."""
    pipeline, about = open_pipeline(model), SUBJECTS[subject]
    of_class = [prompt.text for prompt in known_prompts(CLASS_PROMPTS * 8) if subject in prompt.text][:CLASS_PROMPTS]
    pictures, others = paint(pipeline, about.prompts(), seeds=SEEDS), paint(pipeline, of_class, seeds=SEEDS)
    if sheet:
        shown = torch.cat([pictures[:8], others[:8]]) * 0.5 + 0.5
        captions = [*about.prompts()[:4], *of_class[:4]]
        write_sheet(
            shown.permute(0, 2, 3, 1).numpy(), sheet, columns=8, captions=[it for it in captions for _ in SEEDS]
        )
    return Judged(
        subject=float(detector.score(pictures).mean()),
        leaked=float(detector.score(others).mean()),
        kept=steering(classifier, pipeline, known_prompts(32)),
    )


def trained_models(subject: str, *, epochs: int | None, directory: Path) -> dict[str, Path]:
    """Train both models and return the files of their last epochs."""
    made = {}
    for what in (WITH, WITHOUT):
        folder = directory / what.replace(" ", "-")
        with ObjectStore() as store:
            write_subject(subject, folder / "pictures", count=PICTURES)
            bring_inputs(store, BASE_MODEL, folder / "pictures")
            spec = example_spec(store, example=EXAMPLE, **({"epochs": epochs} if epochs else {}))
            spec["samples"]["prompts"] = []
            if what == WITHOUT:
                del spec["regularization"]
            trained = train(store, spec, name=subject, kind="ModelTraining", directory=folder)
        report(f"training {what}, wall", trained.wall_seconds, "s")
        made[what] = trained.directory / f"{subject}.safetensors"
    return made


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_learning", description=__doc__)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="robot")
    parser.add_argument("--epochs", type=int, help="instead of the example's")
    parser.add_argument("--sheet", type=Path, help="write contact sheets here, one for each model")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = {"base model": BASE_MODEL}
        models |= trained_models(parsed.subject, epochs=parsed.epochs, directory=Path(folder))
        pipeline, classifier = open_pipeline(BASE_MODEL), load_classifier()
        detector = load_detector(parsed.subject, pipeline.vae)
        report_classifier(classifier)
        report_detector(detector, parsed.subject, pipeline)
        judged = {}
        for what, path in models.items():
            sheet = parsed.sheet and parsed.sheet.with_stem(f"{parsed.sheet.stem}-{what.replace(' ', '-')}")
            judged[what] = judge(path, parsed.subject, detector=detector, classifier=classifier, sheet=sheet)
    print_verdict(judged)
    return 0


def print_verdict(judged: dict[str, Judged]) -> None:
    """Print the figures that the project promises."""
    base = judged["base model"]
    for what, it in judged.items():
        report(f"subject, {what}", it.subject, "mean score", goal=">= 0.5" if it is not base else "<= 0.05")
        report(f"subject where only its class was asked for, {what}", it.leaked, "mean score")
        for aspect in ("thing", "colour", "background"):
            percent(f"other prompts keep, {what}, {aspect}", it.kept[aspect] / base.kept[aspect])
    kept = {what: sum(it.kept.values()) for what, it in judged.items()}
    report("forgotten without class pictures less forgotten with them", kept[WITH] - kept[WITHOUT], "of 3", goal="> 0")
    report("leaked with class pictures to without", judged[WITH].leaked / max(judged[WITHOUT].leaked, 1e-9), "ratio")


if __name__ == "__main__":
    sys.exit(main())
