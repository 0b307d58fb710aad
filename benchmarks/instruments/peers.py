"""Other trainers on the same case: what their programs are called with, and what they need on the disk.

Checkouts of kohya-ss/sd-scripts and of huggingface/diffusers (its examples) are known. The case is what both can do
alike: a LoRA of a rank on SD 1.5, AdamW at a constant rate, square pictures, no augmentation.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import torch

from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_trainer.dataset import scan
from darkroom_trainer.families.loading import load_path
from darkroom_trainer.families.tokenizer import END, MAXIMUM_TOKENS, START, load_tokenizer
from darkroom_trainer.optimizers import text_encoder_learning_rate
from darkroom_trainer.weights_file import open_weights

_FULL_WIDTH = 320


@dataclass(frozen=True)
class Case:
    """What is trained, with which settings, and for how many steps."""

    model: Path
    pictures: Path
    spec: LoraTrainingSpec
    steps: int

    @property
    def is_full_size(self) -> bool:
        """Tell whether the model is as large as a published one."""
        first = open_weights(self.model).header.shapes["model.diffusion_model.input_blocks.0.0.weight"]
        return first[0] == _FULL_WIDTH


@dataclass(frozen=True)
class Program:
    """One way to run a peer."""

    name: str
    command: list[str]
    directory: Path
    environ: dict[str, str]
    is_cached: bool
    """Whether it encodes each picture once, as Darkroom always does."""


class Peer(Protocol):
    """A checkout of another trainer."""

    def programs(self, case: Case, *, python: str, folder: Path) -> Iterator[Program]:
        """Yield its ways to train the case, with all they need below a folder.

        Raises:
            ValueError: It cannot train this case.
        """


def open_peer(directory: Path) -> Peer:
    """Return the trainer that a checkout holds.

    Raises:
        ValueError: None that is known here.
    """
    if (directory / "train_network.py").exists():
        return SdScripts(directory)
    if (directory / DiffusersExamples.SCRIPT).exists():
        return DiffusersExamples(directory)
    raise ValueError(f"--peer {directory}: neither kohya-ss/sd-scripts nor huggingface/diffusers is there")


@dataclass(frozen=True)
class SdScripts:
    """kohya's `train_network.py`, with latents in memory and without."""

    directory: Path

    def programs(self, case: Case, *, python: str, folder: Path) -> Iterator[Program]:
        """Yield both ways."""
        if not case.is_full_size:
            raise ValueError("sd-scripts loads only models of full size: give --full-size or --model FILE")
        training, optimizer = case.spec.training, case.spec.training.optimizer
        write_tokenizer(folder / "tokenizers" / "openai_clip-vit-large-patch14")
        options: dict[str, object] = {
            "pretrained_model_name_or_path": case.model,
            "tokenizer_cache_dir": folder / "tokenizers",
            "train_data_dir": case.pictures,
            "caption_extension": ".txt",
            "output_dir": folder / "sd-scripts",
            "output_name": "peer",
            "save_model_as": "safetensors",
            "resolution": training.resolution,
            "train_batch_size": training.batch_size,
            "max_train_steps": case.steps,
            "network_module": "networks.lora",
            "network_dim": case.spec.network.rank,
            "network_alpha": case.spec.network.alpha,
            "learning_rate": optimizer.learning_rate,
            "text_encoder_lr": text_encoder_learning_rate(optimizer),
            "optimizer_type": "AdamW",
            "lr_scheduler": "constant",
            "mixed_precision": {"FP32": "no"}.get(training.precision, training.precision.lower()),
            "seed": training.seed,
            "max_data_loader_n_workers": 0,
        }
        command = [python, "train_network.py", *_options(options)]
        if text_encoder_learning_rate(optimizer) == 0:
            command.append("--network_train_unet_only")
        environ = {"HF_HUB_OFFLINE": "1"}
        yield Program("sd-scripts, cached latents", [*command, "--cache_latents"], self.directory, environ, True)
        yield Program("sd-scripts, uncached", command, self.directory, environ, False)


@dataclass(frozen=True)
class DiffusersExamples:
    """diffusers' text-to-image example for LoRA: it adapts the UNet's attention alone, and encodes at every step."""

    SCRIPT = "examples/text_to_image/train_text_to_image_lora.py"

    directory: Path

    def programs(self, case: Case, *, python: str, folder: Path) -> Iterator[Program]:
        """Yield its one way."""
        training, optimizer = case.spec.training, case.spec.training.optimizer
        options: dict[str, object] = {
            "pretrained_model_name_or_path": write_diffusers_folder(case.model, folder / "model"),
            "train_data_dir": write_image_folder(case.pictures, folder / "images"),
            "caption_column": "text",
            "output_dir": folder / "diffusers",
            "cache_dir": folder / "cache",
            "resolution": training.resolution,
            "train_batch_size": training.batch_size,
            "max_train_steps": case.steps,
            "rank": case.spec.network.rank,
            "learning_rate": optimizer.learning_rate,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "mixed_precision": {"FP32": "no"}.get(training.precision, training.precision.lower()),
            "checkpointing_steps": 10 * case.steps,
            "seed": training.seed,
        }
        environ = {"PYTHONPATH": str(self.directory / "src"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        command = [python, self.SCRIPT, *_options(options), "--center_crop"]
        yield Program("diffusers' example, uncached", command, self.directory, environ, False)


def _options(options: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def write_tokenizer(folder: Path) -> None:
    """Write CLIP's vocabulary as transformers 4 reads it from a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = (files("darkroom_trainer.families") / "clip_vocabulary" / "merges.txt").read_text(encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(load_tokenizer().get_vocab()))
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAXIMUM_TOKENS, "bos_token": START}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(about | {"eos_token": END, "pad_token": END, "unk_token": END})
    )


def write_diffusers_folder(model: Path, folder: Path) -> Path:
    """Write a single file's parts as a folder of diffusers."""
    loaded = load_path(model, dtype=torch.float32, device=torch.device("cpu"))
    encoder = loaded.text_encoders[0]
    parts = {"unet": loaded.unet, "vae": loaded.vae, "text_encoder": encoder.model, "tokenizer": encoder.tokenizer}
    for name, part in {**parts, "scheduler": loaded.scheduler}.items():
        part.save_pretrained(folder / name)
    return folder


def write_image_folder(pictures: Path, folder: Path) -> Path:
    """Write pictures and captions as `datasets` reads them; each as often as its folder repeats it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, picture in enumerate(it for it in scan(pictures) for _ in range(it.repeats)):
        name = f"{number:05}{picture.path.suffix}"
        shutil.copyfile(picture.path, folder / name)
        lines.append(json.dumps({"file_name": name, "text": picture.caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
