"""What is unusual about a run, told before its first step: pure functions from spec and course to short sentences.

Experience, not rules: nothing here refuses anything, and nothing is said where all is usual. The sentences become
``status.plan.advice``, a person's first chance to stop a run that would waste a night. A kind of training brings what
is usual for it as a `usual` of its own. `batches` has the course, `reporting` the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from itertools import islice
from typing import Final

from darkroom_api.embedding_training import EmbeddingTrainingSpec
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.model_training import ModelTrainingSpec
from darkroom_api.networks import LoKr
from darkroom_api.progress import MAXIMUM_ADVICE, Plan
from darkroom_api.training import Training, TrainingSpec
from darkroom_trainer.batches import Course
from darkroom_trainer.captions import split_tags
from darkroom_trainer.dataset import tokens_of

SIDE_RANGE: Final = (0.75, 1.5)
"""Shares of the native side between which such models still paint whole things (SD 1.5 is usually trained at 512 to
768, SDXL at 768 to 1024)."""
ENLARGED: Final = 1.25
"""Enlargement of a side from which a picture is visibly softer than its neighbours."""
ENLARGED_SHARE: Final = 0.25
FULL_BATCHES: Final = 0.75
"""Mean share of a batch that is filled, below which short batches shape the run: each is trained at the whole rate."""
SCALE_RANGE: Final = (0.25, 4.0)
"""Values of alpha / rank; a half to one is usual. Alpha 1 at rank 128 takes the learning rate down by as much."""


@dataclass(frozen=True)
class Usual:
    """What trainings of a kind are like."""

    what: str
    steps: tuple[int, int | None]
    """Least and most; None: there is no most."""
    pictures: tuple[int, int | None]


@singledispatch
def usual(spec: object) -> Usual:
    """Return what is usual for a kind of training."""
    raise NotImplementedError(f"nothing is known of {type(spec).__name__}")


@usual.register
def _(_: LoraTrainingSpec) -> Usual:
    # Steps: what guides to kohya_ss come to (15 pictures, 20 repeats, 10 epochs: 3,000). Pictures: guides name 5 to 25
    # or 15 to 100 for a subject, 100 and more for a style.
    return Usual("a LoRA of one subject", steps=(1500, 6000), pictures=(10, 200))


@usual.register
def _(_: ModelTrainingSpec) -> Usual:
    # The usual 30,000 and more steps are those of fine-tuning on many pictures; DreamBooth on a subject takes hundreds.
    return Usual("a model", steps=(800, None), pictures=(10, None))


@usual.register
def _(_: EmbeddingTrainingSpec) -> Usual:
    # Gal et al. 2022 (arXiv 2208.01618): 5,000 steps on 3 to 5 pictures; tools usually stop between 500 and 5,000.
    return Usual("an embedding", steps=(500, 10_000), pictures=(3, 200))


@singledispatch
def particular(_spec: object) -> Iterator[str]:
    """Yield what can be unusual about one kind of training alone."""
    yield from ()


@particular.register
def _(spec: LoraTrainingSpec) -> Iterator[str]:
    scale, network = spec.network.alpha / spec.network.rank, spec.network
    # An optimizer that learns its step size makes up for the scale; whole matrices have none.
    is_scaled = not (isinstance(network, LoKr) and network.full_matrix)
    if is_scaled and not SCALE_RANGE[0] <= scale <= SCALE_RANGE[1] and not spec.training.optimizer.learns_step_size:
        yield (
            f"network.alpha {network.alpha:g} at rank {network.rank} multiplies all that is learnt by {scale:.2g}, as "
            f"if the learning rate were so much {'lower' if scale < 1 else 'higher'}; an alpha of half the rank to the "
            "whole rank is usual."
        )


def planned(spec: TrainingSpec, course: Course, *, native_side: int | None) -> Plan:
    """Return what the status shows of a course: its numbers, and what is unusual about them.

    Args:
        spec: The run's spec.
        course: What its pictures turned out to mean.
        native_side: Side in pixels of the pictures that the base model was made with; None for a small one of tests,
            for which nothing is usual.
    """
    return course.plan.model_copy(update={"advice": advise(spec, course, native_side=native_side)})


def advise(spec: TrainingSpec, course: Course, *, native_side: int | None) -> list[str]:
    """Return a sentence for each thing that is unusual, the gravest first; none if all is usual."""
    return list(islice(_sentences(spec, course, native_side=native_side), MAXIMUM_ADVICE))


def _sentences(spec: TrainingSpec, course: Course, *, native_side: int | None) -> Iterator[str]:
    if native_side is not None:
        yield from _steps(spec, course)
        yield from _resolution(spec.training.resolution, native_side)
    yield from _pictures(spec, course)
    yield from _enlarged(spec.training, course)
    yield from _short_batches(course)
    yield from particular(spec)
    yield from _captions(spec.training, course)


def _steps(spec: TrainingSpec, course: Course) -> Iterator[str]:
    known, total = usual(spec), course.total_steps
    least, most = known.steps
    shown = _shown_per_epoch(course) * course.epochs  # in larger batches, fewer steps show as much
    size = course.batch_size * course.accumulation
    of = f" of up to {size} pictures" if size > 1 else ""
    said = f"The run has {_count(total, 'step')}{of}; {known.what} usually takes {_span(known.steps)}"
    if max(shown, total) < least:
        wanted = math.ceil(course.epochs * least / shown)
        yield f"{said}. Raise training.epochs to about {wanted}, or the folders' repeats."
    elif most is not None and total > most and not _stops_early(spec):
        wanted = course.epochs * most // total
        how = f"Lower training.epochs to about {wanted}" if wanted else "Lower the folders' repeats"
        yield f"{said}. {how}, or let spec.validation choose the epoch: more steps often overtrain."


def _stops_early(spec: TrainingSpec) -> bool:
    return spec.validation is not None and spec.validation.early_stopping is not None


def _resolution(side: int, native: int) -> Iterator[str]:
    if not SIDE_RANGE[0] <= side / native <= SIDE_RANGE[1]:
        yield (
            f"training.resolution {side} is far from the {native} pixels that the base model was made with; "
            f"{math.ceil(native * SIDE_RANGE[0])} to {int(native * SIDE_RANGE[1])} is usual."
        )


def _pictures(spec: TrainingSpec, course: Course) -> Iterator[str]:
    known, number = usual(spec), len({picture.sha256 for picture in course.pictures})
    least, most = known.pictures
    said = f"{_count(number, 'picture')} for {known.what}; {_span(known.pictures)} are usual"
    if number < least:
        yield f"{said}. It will learn their backgrounds and poses too: give more that differ, or use an early epoch."
    elif most is not None and number > most:
        yield f"{said}. That is right for a style or for many subjects; for one, choose the best."


def _enlarged(training: Training, course: Course) -> Iterator[str]:
    factors = [
        max(scaled / own for scaled, own in zip(item.placement.scaled, item.picture.size, strict=True))
        for item in course.items
    ]
    enlarged = [factor for factor in factors if factor > ENLARGED]
    if len(enlarged) > ENLARGED_SHARE * len(factors):
        yield (
            f"{len(enlarged)} of {_count(len(factors), 'picture')} are enlarged up to {max(enlarged):.1f} times "
            "to fill their buckets, and the run learns their blur: give larger ones, or lower training.resolution."
        )


def _short_batches(course: Course) -> Iterator[str]:
    held = _shown_per_epoch(course) / course.batches_per_epoch
    if held >= FULL_BATCHES * course.batch_size:
        return
    rare = sum(len(items) < course.batch_size for items in course.buckets.values())
    why = f"{rare} of {_count(len(course.buckets), 'bucket')} have fewer" if rare else "the last of a bucket is short"
    yield (
        f"A batch has {held:.1f} pictures on average instead of {course.batch_size}: {why}. In a short batch each "
        "picture weighs more: crop the pictures to fewer shapes, raise the repeats, or lower training.batchSize."
    )


def _captions(training: Training, course: Course) -> Iterator[str]:
    spec = training.captions
    if spec.dropout and all(picture.caption == tokens_of(picture.folder) for picture in course.pictures):
        yield (
            f"No picture has a caption of its own, so training.captions.dropout {spec.dropout:g} hides nothing but the "
            "trigger: set it to 0, or write captions."
        )
    most = max(len(split_tags(picture.caption)) for picture in course.pictures)
    if spec.shuffle and most <= spec.keep_tokens + 1:
        yield (
            f"training.captions.shuffle changes nothing: no caption has more than {_count(most, 'tag')} between commas"
            + (f", and keepTokens leaves {spec.keep_tokens} in place." if spec.keep_tokens else ".")
        )


def _shown_per_epoch(course: Course) -> int:
    return sum(map(len, course.buckets.values()))


def _span(bounds: tuple[int, int | None]) -> str:
    least, most = bounds
    return f"{least:,} and more" if most is None else f"{least:,} to {most:,}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
