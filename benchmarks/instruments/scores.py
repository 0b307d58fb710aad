"""What pictures show of what their prompts asked for; with a LoRA and without, that is what it left of the prior."""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionPipeline

from benchmarks.instruments import classifier as classifiers
from benchmarks.instruments import detector as detectors
from benchmarks.instruments.classifier import Classifier, agreement
from benchmarks.instruments.detector import Detector, round_trip
from benchmarks.instruments.painting import Prompt, paint
from benchmarks.reporting import percent, report

SEEDS = (1, 2)


def steering(
    judge: Classifier, pipeline: StableDiffusionPipeline, prompts: list[Prompt], *, lora: Path | None = None
) -> dict[str, float]:
    """Return the share of pictures, two for each prompt, that show what it asked for, by aspect."""
    images = paint(pipeline, [prompt.text for prompt in prompts], seeds=SEEDS, lora=lora)
    return agreement(judge.read(images), [prompt.wanted for prompt in prompts for _ in SEEDS])


def report_classifier(judge: Classifier) -> None:
    """Print how far the classifier can be trusted."""
    for aspect, share in classifiers.accuracy(judge).items():
        percent(f"classifier's accuracy, {aspect}", share)


def report_detector(detector: Detector, name: str, pipeline: StableDiffusionPipeline) -> None:
    """Print how far a detector can be trusted on pictures that went through the autoencoder."""
    scores = detectors.accuracy(detector, name, lambda given: round_trip(pipeline.vae, given))
    for kind, score in scores.items():
        goal = ">= 0.9" if kind == "with it" else ""
        report(f"detector of {name}, round trips {kind}", score, "mean score", goal=goal)
