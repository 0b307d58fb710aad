"""Measures the small base model: does it paint what it is told, also what it was never shown, and what does it cost?

    python -m benchmarks.base_model --sheet sheet.png

What a LoRA learns on it is measured by `benchmarks.lora_learning`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.instruments.classifier import Classifier, agreement, draw_scenes, load_classifier
from benchmarks.instruments.detector import load_detector, round_trip
from benchmarks.instruments.painting import BASE_MODEL, held_out_prompts, known_prompts, open_pipeline, paint
from benchmarks.instruments.scores import report_classifier, report_detector, steering
from benchmarks.instruments.trainings import seconds_per_step
from benchmarks.reporting import percent, report
from examples.base_model.sheet import write_sheet
from examples.base_model.subjects import SUBJECTS

KNOWN_GOALS = {"thing": ">= 85", "colour": ">= 95", "background": ">= 95"}


def judge_autoencoder(judge: Classifier, pipeline: StableDiffusionPipeline) -> None:
    """Print what a round trip through the autoencoder keeps of what the classifier reads, and of each subject."""
    images, wanted = draw_scenes(200, seed=79)
    before = agreement(judge.read(images), wanted)
    after = agreement(judge.read(round_trip(pipeline.vae, images)), wanted)
    for aspect, share in after.items():
        percent(f"autoencoder keeps of the classifier's score, {aspect}", share / before[aspect], goal=">= 95")
    for name in SUBJECTS:
        report_detector(load_detector(name, pipeline.vae), name, pipeline)


def judge_steering(judge: Classifier, pipeline: StableDiffusionPipeline, count: int) -> None:
    """Print how many pictures show what their prompts asked for."""
    for aspect, share in steering(judge, pipeline, known_prompts(count)).items():
        percent(f"known combinations, {aspect}", share, goal=KNOWN_GOALS.get(aspect, ""))
    for aspect, share in steering(judge, pipeline, held_out_prompts(count)).items():
        percent(f"held-out combinations, {aspect}", share, goal=">= 70" if aspect == "thing and colour" else "")


def judge_cost(pipeline: StableDiffusionPipeline, model: Path) -> None:
    """Print what a sample and a training step cost one core."""
    prompts = ["a large red star on a white background"]
    paint(pipeline, prompts, seeds=(1,))
    began = time.process_time()
    for seed in range(5):
        paint(pipeline, prompts, seeds=(seed,))
    report("a sample of 20 steps", (time.process_time() - began) / 5, "s of one core", goal="<= 2")
    report("a LoRA step of batch 4", seconds_per_step(model), "s of one core", goal="<= 0.4")


def write_overview(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Write a contact sheet of prompts that the model knows, and of held-out combinations in its last row."""
    texts = [prompt.text for prompt in known_prompts(24, seed=5) + held_out_prompts(8, seed=6)]
    images = paint(pipeline, texts, seeds=(1,))
    write_sheet((images * 0.5 + 0.5).permute(0, 2, 3, 1).numpy(), path, columns=8, captions=texts)
    print(f"contact sheet: {path}")


def _at_least_one(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"got {count}; at least 1")
    return count


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.base_model", description=__doc__)
    parser.add_argument("--model", type=Path, default=BASE_MODEL)
    parser.add_argument("--prompts", type=_at_least_one, default=128, help="of each kind, painted with two seeds")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    pipeline, judge = open_pipeline(parsed.model), load_classifier()
    if parsed.sheet:
        write_overview(pipeline, parsed.sheet)
    report_classifier(judge)
    judge_cost(pipeline, parsed.model)
    judge_steering(judge, pipeline, parsed.prompts)
    judge_autoencoder(judge, pipeline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
