"""What a checkpoint's file says of its making: kohya's `ss_…` keys, which A1111 shows, and modelspec's.

Names and values are kohya's to the letter. No time and no host name is among them: an epoch that is trained again after
a stop must give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Final

from darkroom_api.embedding_training import EmbeddingTrainingSpec
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.model_training import ModelTrainingSpec
from darkroom_api.objectives import L2, Objective
from darkroom_api.optimizers import Optimizer, TrainsTextEncoder
from darkroom_api.schedules import Schedule
from darkroom_api.training import Buckets, TrainingSpec
from darkroom_trainer.batches import Course
from darkroom_trainer.buckets import rounded_limits
from darkroom_trainer.captions import lines_shown, split_tags
from darkroom_trainer.dataset import Picture
from darkroom_trainer.families.model import Nature
from darkroom_trainer.networks.about import about_network
from darkroom_trainer.optimizers import text_encoder_learning_rate
from darkroom_trainer.schedules import warmup_steps

LOSS_NAMES: Final = {"L2": "l2", "SmoothL1": "smooth_l1", "Huber": "huber"}


@dataclass(frozen=True)
class BaseModelFile:
    """What a file's metadata says about the base model that it was trained on."""

    name: str
    sha256: str
    legacy_hash: str
    """A1111's first hash: of 64 KiB at 1 MiB, eight digits."""


def hash_base_model(path: Path, sha256: str | None = None) -> BaseModelFile:
    """Describe the base model's file; its SHA-256 is only computed if nobody knows it yet."""
    with path.open("rb") as file:
        if sha256 is None:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0x100000)
        legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    return BaseModelFile(path.name, sha256, legacy)


def metadata(
    spec: TrainingSpec, course: Course, base: BaseModelFile, *, nature: Nature, name: str, epoch: int
) -> dict[str, str]:
    """Return what a file says about its making.

    Args:
        spec: The training's spec.
        course: What the dataset turned out to mean.
        base: The base model's file.
        nature: What that is.
        name: The file's own stem. A1111 takes it for an alias, so two epochs must not share it.
        epoch: Epochs completed.
    """
    values = {
        **_model(nature),
        **_run(spec, course, epoch=epoch),
        **about_kind(spec),
        **_dataset(spec, course),
        "ss_output_name": name,
        "ss_sd_model_name": base.name,
        "ss_sd_model_hash": base.legacy_hash,
        "ss_new_sd_model_hash": base.sha256,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _architecture(nature) + KIND_SUFFIXES[type(spec)],
        "modelspec.implementation": _implementation(spec, nature),
        "modelspec.title": name,
        "modelspec.resolution": f"{spec.training.resolution}x{spec.training.resolution}",
        "modelspec.prediction_type": "v" if nature.predicts_velocity else "epsilon",
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


@singledispatch
def about_kind(spec: object) -> dict[str, object]:
    """Return the metadata that only this kind of training has, or has otherwise than the others."""
    raise NotImplementedError(f"no metadata for {type(spec).__name__}")


@about_kind.register
def _(spec: LoraTrainingSpec) -> dict[str, object]:
    return about_network(spec.network)


@about_kind.register
def _(spec: ModelTrainingSpec) -> dict[str, object]:
    return {}


@about_kind.register
def _(spec: EmbeddingTrainingSpec) -> dict[str, object]:
    # Under the names of kohya's own options.
    return {
        "ss_unet_lr": "None",
        "ss_text_encoder_lr": "None",
        "ss_token_string": spec.embedding.token,
        "ss_init_word": spec.embedding.initializer or "None",
        "ss_num_vectors_per_token": spec.embedding.num_vectors,
    }


KIND_SUFFIXES: Final[dict[type[TrainingSpec], str]] = {
    LoraTrainingSpec: "/lora",
    ModelTrainingSpec: "",
    EmbeddingTrainingSpec: "/textual-inversion",
}
"""What modelspec puts after a model's architecture for something that is trained upon it."""


def _model(nature: Nature) -> dict[str, object]:
    is_old = nature.family.name in {"SD15", "SD2"}  # kohya tells the prediction in the version of these alone
    return {
        "ss_v2": str(nature.family.name == "SD2"),
        "ss_base_model_version": nature.family.version + ("_v" if is_old and nature.predicts_velocity else ""),
        "ss_zero_terminal_snr": str(nature.zero_terminal_snr),
    }


def _architecture(nature: Nature) -> str:
    is_sd2_v = nature.family.name == "SD2" and nature.predicts_velocity
    return "stable-diffusion-v2-768-v" if is_sd2_v else nature.family.architecture


def _implementation(spec: TrainingSpec, nature: Nature) -> str:
    """Return whose layer names the file uses, as kohya tells it."""
    if isinstance(spec, LoraTrainingSpec) and not nature.family.unet_by_file_names:
        return "diffusers"
    return "https://github.com/Stability-AI/generative-models"


def _run(spec: TrainingSpec, course: Course, *, epoch: int) -> dict[str, object]:
    training, optimizer = spec.training, spec.training.optimizer
    return {
        "ss_epoch": epoch,
        "ss_num_epochs": training.epochs,
        "ss_steps": epoch * course.steps_per_epoch,
        "ss_max_train_steps": course.total_steps,
        "ss_num_batches_per_epoch": course.batches_per_epoch,
        "ss_gradient_accumulation_steps": training.gradient_accumulation,
        "ss_learning_rate": optimizer.learning_rate,
        "ss_unet_lr": optimizer.learning_rate,
        "ss_text_encoder_lr": _text_encoder_rate(optimizer),
        "ss_optimizer": _optimizer(optimizer),
        "ss_lr_scheduler": _scheduler(training.schedule),
        "ss_lr_warmup_steps": warmup_steps(training.schedule, course.total_steps),
        "ss_max_grad_norm": training.maximum_gradient_norm,
        "ss_gradient_checkpointing": str(training.gradient_checkpointing),
        "ss_mixed_precision": {"FP32": "no"}.get(training.precision, training.precision.lower()),
        "ss_seed": training.seed,
        "ss_clip_skip": training.text_encoding.clip_skip if training.text_encoding.clip_skip > 1 else "None",
        "ss_max_token_length": training.text_encoding.maximum_tokens
        if training.text_encoding.maximum_tokens > 75
        else "None",
        **_objective(training.objective),
    }


def _text_encoder_rate(optimizer: Optimizer) -> float | str:
    return text_encoder_learning_rate(optimizer) if isinstance(optimizer, TrainsTextEncoder) else "None"


def _optimizer(optimizer: Optimizer) -> str:
    """Return class and arguments as kohya puts them, without the learning rates, which have keys of their own."""
    rates = {"type", "learning_rate", "text_encoder_learning_rate"}
    arguments = optimizer.model_dump(exclude=rates, exclude_none=True)
    return f"{optimizer.type}({','.join(f'{name}={value}' for name, value in arguments.items())})"


def _scheduler(schedule: Schedule) -> str:
    """Return kohya's name of a schedule: snake case, and one of its own for a constant rate with warm-up."""
    if schedule.type == "Constant" and (schedule.warmup_steps or schedule.warmup_ratio):
        return "constant_with_warmup"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", schedule.type).lower()


def _objective(objective: Objective) -> dict[str, object]:
    multires, loss = objective.multires_noise, objective.loss
    first, end = objective.timesteps.minimum, objective.timesteps.maximum
    delta, schedule = ("None", "None") if isinstance(loss, L2) else (loss.delta, loss.schedule.lower())
    return {
        "ss_min_snr_gamma": objective.min_snr_gamma or "None",
        "ss_debiased_estimation": str(objective.debiased),
        "ss_noise_offset": objective.noise_offset or "None",
        "ss_multires_noise_iterations": multires.iterations if multires else "None",
        "ss_multires_noise_discount": multires.discount if multires else "None",
        "ss_ip_noise_gamma": objective.input_perturbation or "None",
        "ss_loss_type": LOSS_NAMES[loss.type],
        "ss_huber_schedule": schedule,
        "ss_huber_c": delta,
        "ss_huber_scale": 1.0,
        **({} if (first, end) == (0, 1000) else {"modelspec.timestep_range": f"{first},{end}"}),
    }


def _dataset(spec: TrainingSpec, course: Course) -> dict[str, object]:
    training = spec.training
    return {
        "ss_num_train_images": sum(picture.repeats for picture in course.pictures),
        **({"ss_num_validation_images": len(course.validation)} if course.validation else {}),
        "ss_num_reg_images": len(course.prior.items) if course.prior else 0,
        "ss_prior_loss_weight": course.prior.weight if course.prior else 1.0,
        "ss_batch_size_per_device": training.batch_size,
        "ss_total_batch_size": course.batch_size * course.accumulation,
        "ss_resolution": f"({training.resolution}, {training.resolution})",
        **_buckets(training.buckets),
        "ss_color_aug": str(training.augmentation.color),
        "ss_flip_aug": str(training.augmentation.flip),
        "ss_random_crop": str(training.augmentation.random_crop),
        "ss_shuffle_caption": str(training.captions.shuffle),
        "ss_keep_tokens": training.captions.keep_tokens,
        "ss_caption_dropout_rate": training.captions.dropout,
        "ss_caption_dropout_every_n_epochs": training.captions.dropout_every_epochs,
        "ss_caption_tag_dropout_rate": training.captions.tag_dropout,
        "ss_dataset_dirs": _directories(course.pictures),
        "ss_reg_dataset_dirs": _directories([it.picture for it in dict.fromkeys(course.prior.items)])
        if course.prior
        else {},
        "ss_bucket_info": _bucket_info(course) if training.buckets.enabled else "null",
        "ss_tag_frequency": {
            folder: count_tags([line for it in found for line in lines_shown(it.caption, training.captions)])
            for folder, found in _by_folder(course.pictures).items()
        },
    }


def _buckets(buckets: Buckets) -> dict[str, object]:
    shortest, longest = rounded_limits(buckets.minimum, buckets.maximum, buckets.step)
    return {
        "ss_enable_bucket": str(buckets.enabled),
        "ss_bucket_no_upscale": str(buckets.enabled and not buckets.upscale),
        "ss_min_bucket_reso": shortest if buckets.enabled else "None",
        "ss_max_bucket_reso": longest if buckets.enabled else "None",
    }


def _bucket_info(course: Course) -> dict[str, object]:
    shapes = [(item.placement.bucket, item.picture.size) for item in course.items]
    errors = [abs(bucket[0] / bucket[1] - size[0] / size[1]) for bucket, size in shapes]
    buckets = {
        str(index): {"resolution": list(size), "count": len(items)}
        for index, (size, items) in enumerate(course.buckets.items())
    }
    return {"buckets": buckets, "mean_img_ar_error": math.fsum(errors) / len(errors)}


def _by_folder(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    folders: dict[str, list[Picture]] = {folder: [] for folder in sorted({it.folder for it in pictures})}
    for picture in pictures:
        folders[picture.folder].append(picture)
    return folders


def _directories(pictures: Sequence[Picture]) -> dict[str, object]:
    return {
        folder: {"n_repeats": found[0].repeats, "img_count": len(found)}
        for folder, found in _by_folder(pictures).items()
    }


def count_tags(captions: Sequence[str]) -> dict[str, int]:
    """Count the tags of captions in small letters, the commonest first; A1111 shows them as chips."""
    return dict(Counter(tag.lower() for caption in captions for tag in split_tags(caption)).most_common())
