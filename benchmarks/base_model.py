"""Measures the small base model: does it paint what it is told, and can training be seen on it?

    python -m benchmarks.base_model                  # steering, held-out combinations, autoencoder, cost: minutes
    python -m benchmarks.base_model --training       # also a LoRA of a new character, and one four times as long

Every figure that a network judges stands below the accuracy of that network.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.instruments import classifier as classifiers
from benchmarks.instruments import detector as detectors
from benchmarks.instruments.classifier import Classifier, agreement, draw_scenes, load_classifier
from benchmarks.instruments.detector import load_detector, round_trip
from benchmarks.instruments.painting import BASE_MODEL, Prompt, held_out_prompts, known_prompts, open_pipeline, paint
from examples.base_model.sheet import write_sheet
from examples.base_model.subjects import SUBJECTS

SEEDS = (1, 2)


def report(name: str, figure: float, unit: str, *, goal: str = "") -> None:
    """Print one line."""
    print(f"{name}: {figure:.3g} {unit}{f'   (goal {goal})' if goal else ''}", flush=True)


def percent(name: str, share: float, *, goal: str = "") -> None:
    """Print a share as a percentage."""
    report(name, 100 * share, "%", goal=goal)


def judge_instruments(
    judge: Classifier, pipeline: StableDiffusionPipeline, digest: str
) -> dict[str, detectors.Detector]:
    """Print how far each instrument can be trusted, on drawings that it has not seen, and how the autoencoder does."""
    for aspect, share in classifiers.accuracy(judge).items():
        percent(f"classifier's accuracy, {aspect}", share)
    images, wanted = draw_scenes(200, seed=79)
    before = agreement(judge.read(images), wanted)
    after = agreement(judge.read(round_trip(pipeline.vae, images)), wanted)
    for aspect in classifiers.ASPECTS:
        percent(f"autoencoder keeps of the classifier's score, {aspect}", after[aspect] / before[aspect], goal=">= 95")
    found = {}
    for name in SUBJECTS:
        found[name] = load_detector(name, pipeline.vae, key=digest)
        scores = detectors.accuracy(found[name], name, lambda given: round_trip(pipeline.vae, given))
        report(f"detector of {name}, round trips with it", scores["with"], "mean score", goal=">= 0.9")
        report(f"detector of {name}, hard negatives", scores["without"], "mean score")
    return found


def judge_steering(
    judge: Classifier, pipeline: StableDiffusionPipeline, prompts: list[Prompt], *, lora: Path | None = None
) -> dict[str, float]:
    """Return the share of pictures that show what their prompt asked for, by aspect."""
    images = paint(pipeline, [prompt.text for prompt in prompts], seeds=SEEDS, lora=lora)
    return agreement(judge.read(images), [prompt.wanted for prompt in prompts for _ in SEEDS])


def judge_cost(pipeline: StableDiffusionPipeline) -> None:
    """Print what a sample and a training step cost on this core."""
    began = time.process_time()
    paint(pipeline, ["a large red star on a white background"], seeds=(1,))
    report("a sample of 20 steps", time.process_time() - began, "s of one core", goal="<= 2")


def write_overview(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Write a contact sheet of prompts that the model knows, and of held-out combinations in its last rows."""
    texts = [prompt.text for prompt in known_prompts(24, seed=5) + held_out_prompts(8, seed=6)]
    images = paint(pipeline, texts, seeds=(1,))
    write_sheet((images * 0.5 + 0.5).permute(0, 2, 3, 1).numpy(), path, columns=8, captions=texts)
    print(f"contact sheet: {path}")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.base_model", description=__doc__)
    parser.add_argument("--model", type=Path, default=BASE_MODEL)
    parser.add_argument("--prompts", type=int, default=128, help="prompts to paint with two seeds each")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    pipeline, judge = open_pipeline(parsed.model), load_classifier()
    if parsed.sheet:
        write_overview(pipeline, parsed.sheet)
    judge_instruments(judge, pipeline, hashlib.sha256(parsed.model.read_bytes()).hexdigest())
    for aspect, share in judge_steering(judge, pipeline, known_prompts(parsed.prompts)).items():
        percent(f"known combinations, {aspect}", share, goal=">= 85" if aspect == "thing" else ">= 95")
    held_out = judge_steering(judge, pipeline, held_out_prompts(parsed.prompts // 2))
    for aspect, share in held_out.items():
        percent(f"held-out combinations, {aspect}", share, goal=">= 70")
    judge_cost(pipeline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
