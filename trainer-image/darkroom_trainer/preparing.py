"""From a plan to a session: fetch, inspect, bucket, cache, inject. What can be wrong is found first."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import torch
from accelerate import Accelerator

from darkroom_api.failures import FailureReason
from darkroom_api.model_training import ModelTrainingSpec
from darkroom_api.plan import RunPlan
from darkroom_api.progress import Plan, Stage
from darkroom_api.training import TrainingSpec
from darkroom_trainer.advising import planned
from darkroom_trainer.batches import Course, arrange
from darkroom_trainer.class_pictures import paint_class
from darkroom_trainer.dataset import Picture, scan
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import SD15, Family
from darkroom_trainer.families.folders import assemble
from darkroom_trainer.families.loading import load
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.families.recognition import check_family, native_side
from darkroom_trainer.fetching import (
    DATASET,
    INITIAL_WEIGHTS,
    REGULARIZATION,
    VALIDATION_DATASET,
    datasets,
    fetch_base_model,
    fetch_dataset,
    fetch_initial_weights,
    initial_weights,
    regularization_of,
)
from darkroom_trainer.fitting import Fitting
from darkroom_trainer.hardware import BASE_DTYPES, open_accelerator
from darkroom_trainer.items import Item, placed
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.metadata import BaseModelFile, hash_base_model
from darkroom_trainer.offloading import HOST, at_work, let_wait
from darkroom_trainer.opening import check_model, check_pictures
from darkroom_trainer.priors import Prior, repeated
from darkroom_trainer.services import Services
from darkroom_trainer.session import Session, open_session
from darkroom_trainer.store import sha256_of
from darkroom_trainer.weights_file import WeightsFile, open_weights

LATENTS: Final = "latents"
"""Where encoded pictures lie, below the work directory."""
LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a run starts from, fetched and looked through."""

    model: WeightsFile
    family: Family
    base: Future[BaseModelFile]
    """Hashes of the model's file, computed beside everything else."""
    initial: WeightsFile | None
    """Weights that training begins with, instead of nothing."""
    course: Course
    plan: Plan
    """The course as the status shows it, with advice."""

    def fingerprint(self, course: Course) -> str:
        """Return a hash of model, pictures, captions, masks and initial weights."""
        parts = [self.base.result().sha256, course.fingerprint]
        if self.initial:
            parts.append(sha256_of(self.initial.path))
        return hashlib.sha256("/".join(parts).encode()).hexdigest()


def fetch(plan: RunPlan, services: Services) -> Inputs:
    """Bring model and pictures onto the local disk, judge both, and give every picture its bucket.

    Raises:
        RunError: One of them is not there or not usable.
    """
    spec, reporter, store = plan.spec, services.reporter, services.store
    reporter.stage(Stage.FETCHING, "base model")
    model = fetch_base_model(
        store, spec.base_model, services.work / "base-model", on_progress=reporter.transfer("base model")
    )
    if spec.base_model.is_folder:
        reporter.stage(Stage.INSPECTING, "Making one file of the base model's parts")
        model = assemble(model, before_tensor=services.stop.check)
    file = open_weights(model)
    family = check_family(file.header.shapes, model.name, family=spec.base_model.family)
    initial = _fetch_initial(spec, services)
    with ThreadPoolExecutor(1, "hash") as pool:
        base = pool.submit(hash_base_model, model, spec.base_model.sha256)
        if spec.dataset.uri is None:
            raise RunError(FailureReason.INVALID_SPEC, "spec.dataset.name: the plan holds no address for it")
        pictures = _fetch_pictures(plan, services)
        course = arrange(
            pictures[DATASET],
            spec.training,
            validation=spec.validation,
            processes=spec.compute.num_processes,
            others=pictures.get(VALIDATION_DATASET, []),
        )
        course = _with_prior(course, pictures.get(REGULARIZATION, []), spec, path=REGULARIZATION)
        advised = planned(spec, course, native_side=native_side(family, file.header.shapes, spec.training.objective))
        return Inputs(file, family, base, initial, course, advised)


def _fetch_initial(spec: TrainingSpec, services: Services) -> WeightsFile | None:
    """Fetch the weights that training begins with, if the spec names a file of them."""
    source = initial_weights(spec)
    if source is None:
        return None
    services.reporter.stage(Stage.FETCHING, "initial weights")
    progress = services.reporter.transfer("initial weights")
    directory = services.work / "initial-weights"
    path = fetch_initial_weights(services.store, source, directory, on_progress=progress)
    return open_weights(path, field=INITIAL_WEIGHTS)


def _with_prior(course: Course, pictures: Sequence[Picture], spec: TrainingSpec, *, path: str) -> Course:
    """Return the course with pictures of the class beside the subject's, if there are any."""
    regularization = regularization_of(spec)
    if regularization is None or not pictures:
        return course
    items = placed(pictures, spec.training, path=path)
    return replace(course, prior=Prior(repeated(items), regularization.prior_weight, spec.training.seed))


def _fetch_pictures(plan: RunPlan, services: Services) -> dict[str, list[Picture]]:
    """Fetch and look through every set of pictures that the spec names, by the field that names it."""
    whats = {DATASET: "pictures", REGULARIZATION: "class pictures", VALIDATION_DATASET: "validation pictures"}
    found: dict[str, list[Picture]] = {}
    for field, prefix in datasets(plan.spec).items():
        services.reporter.stage(Stage.FETCHING, whats[field])
        directory = services.work / whats[field].replace(" ", "-")
        progress = services.reporter.transfer(whats[field])
        fetch_dataset(services.store, prefix, directory, field=field, on_progress=progress)
        services.reporter.stage(Stage.INSPECTING, whats[field])
        mask = None if field == REGULARIZATION else plan.spec.training.mask
        found[field] = scan(directory, field=field, mask=mask, before_picture=services.stop.check)
        check_pictures(plan.spec, found[field], field=field)
    return found


def prepare(plan: RunPlan, services: Services, inputs: Inputs) -> Session:
    """Load the model, paint its class if asked for, encode the pictures, and put what is trained into the model."""
    spec, reporter, course = plan.spec, services.reporter, inputs.course
    reporter.stage(Stage.INSPECTING, "Loading the base model")
    accelerator, model = load_model(spec, inputs.model, inputs.family)
    _require_sense(model, inputs.family, spec)
    check_model(spec, model, inputs.initial)
    regularization = regularization_of(spec)
    if regularization and regularization.class_ is not None:
        painted = paint_class(spec, regularization, model, prefix=plan.prefix, services=services)
        course = _with_prior(course, painted, spec, path="spec.regularization.class")
    latents, items = (
        LatentCache(services.work / LATENTS, model.vae, mask=course.mask, processes=spec.compute.num_processes),
        course.known_ahead,
    )
    if course.encodes_in_steps:
        LOG.info("training.augmentation: pictures are encoded while training, so the VAE stays on %s", model.device)

    def before_item(index: int) -> None:
        services.stop.check()
        reporter.stage(Stage.CACHING, f"picture {index + 1} of {len(items)}")

    fill(latents, model, items, before_item=before_item, may_tile=spec.training.out_of_memory != "Fail")
    session = open_session(
        spec,
        course,
        model,
        latents=latents,
        accelerator=accelerator,
        inputs=inputs.fingerprint(course),
        initial=inputs.initial,
    )
    reporter.stage(Stage.CACHING, "captions")
    let_wait(session, before_prompt=services.stop.check)
    return session


def fill(
    latents: LatentCache,
    model: StableDiffusion,
    items: Sequence[Item],
    *,
    before_item: Callable[[int], None],
    may_tile: bool,
) -> None:
    """Encode pictures; if memory lacks for that, while the rest of the model waits, and then, if allowed, in tiles."""

    def alone() -> None:
        latents.may_tile = may_tile
        with at_work(model.parts.values(), HOST):
            latents.fill(items, on_item=before_item)

    Fitting("encode pictures beside the UNet").do(lambda: latents.fill(items, on_item=before_item), alone)
    latents.may_tile = may_tile  # for what is encoded in steps


def load_model(spec: TrainingSpec, file: WeightsFile, family: Family) -> tuple[Accelerator, StableDiffusion]:
    """Load a base model onto the device that the spec asks for; what is trained of a whole model must be in fp32."""
    accelerator = open_accelerator(spec.training.precision, gpus=spec.compute.gpus)
    model = load(
        file,
        family,
        objective=spec.training.objective,
        dtype=torch.float32 if isinstance(spec, ModelTrainingSpec) else BASE_DTYPES[spec.training.precision],
        device=_numbered(accelerator.device),
    )
    return accelerator, model


def _numbered(device: torch.device) -> torch.device:
    """Return the device as tensors on it call it: with its number, where there are several."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _require_sense(model: StableDiffusion, family: Family, spec: TrainingSpec) -> None:
    """Refuse what only the file could tell to be senseless.

    Raises:
        RunError: Options and model do not fit.
    """
    nature = model.nature
    if nature.zero_terminal_snr and not nature.predicts_velocity:
        raise RunError(
            FailureReason.INVALID_SPEC,
            "spec.training.objective.zeroTerminalSnr: the model predicts noise, and pure noise says nothing of the "
            "picture; allowed with predictionType VPrediction",
        )
    clip_skip = spec.training.text_encoding.clip_skip
    if clip_skip > 1 and family is not SD15:
        raise RunError(
            FailureReason.INVALID_SPEC,
            f"spec.training.textEncoding.clipSkip: {clip_skip} is given, but {family.title} always "
            "takes the last but one layer; allowed: 1",
        )
