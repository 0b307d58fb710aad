"""Paint prompts with the small base model as a user of diffusers does, with a LoRA file or without."""

from __future__ import annotations

import functools
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.instruments.classifier import Reading, expected
from darkroom_trainer.families.tokenizer import load_tokenizer
from examples.base_model.export import draw, load, write_config
from examples.base_model.scenes import Scene, sample_held_out, sample_scene

BASE_MODEL = Path(__file__).parents[2] / "examples" / "base-model" / "tiny-sd15.safetensors"
GUIDANCE = 3.0
BATCH = 8


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what a picture of it should be read as."""

    text: str
    wanted: Reading


def known_prompts(count: int, *, seed: int = 1000) -> list[Prompt]:
    """Return captions of scenes such as the base model has seen."""
    rng = random.Random(seed)
    return [_prompt(sample_scene(rng)) for _ in range(count)]


def held_out_prompts(count: int, *, seed: int = 2000) -> list[Prompt]:
    """Return captions of things in colours that the base model has never seen on them."""
    rng = random.Random(seed)
    return [_prompt(sample_held_out(rng)) for _ in range(count)]


def _prompt(scene: Scene) -> Prompt:
    return Prompt(scene.caption, expected(scene))


@functools.cache
def open_pipeline(path: Path = BASE_MODEL) -> StableDiffusionPipeline:
    """Open a checkpoint."""
    return _open(path)


def open_with_embedding(embedding: Path, token: str, path: Path = BASE_MODEL) -> StableDiffusionPipeline:
    """Open a checkpoint with a new word; each has a pipeline of its own, since diffusers leaves traces of a word."""
    pipeline = _open(path)
    pipeline.load_textual_inversion(str(embedding), token=token)
    return pipeline


def _open(path: Path) -> StableDiffusionPipeline:
    with tempfile.TemporaryDirectory() as folder:
        return load(path, write_config(Path(folder), load_tokenizer()))


def paint(
    pipeline: StableDiffusionPipeline, prompts: list[str], *, seeds: tuple[int, ...], lora: Path | None = None
) -> torch.Tensor:
    """Paint each prompt with each seed; return pictures (B, C, H, W) in [-1, 1], a prompt's beside each other."""
    pipeline.unload_lora_weights()
    if lora is not None:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    jobs = [(prompt, seed + 100 * index) for index, prompt in enumerate(prompts) for seed in seeds]
    parts = [_paint_batch(pipeline, jobs[start : start + BATCH]) for start in range(0, len(jobs), BATCH)]
    return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2) * 2 - 1


def _paint_batch(pipeline: StableDiffusionPipeline, jobs: list[tuple[str, int]]) -> np.ndarray:
    return draw(pipeline, [prompt for prompt, _ in jobs], seeds=[seed for _, seed in jobs], guidance=GUIDANCE)
