"""Pictures of a class that the run paints itself, before it trains, with the base model as it is.

They go to the store in small sets, so that a run that is stopped goes on with those that are there: bit for bit the
same pictures, whatever node comes next. Neighbour: `priors` trains on them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from darkroom_api.layout import MANIFEST, regularization_directory
from darkroom_api.progress import Stage
from darkroom_api.regularization import Regularization
from darkroom_api.training import TrainingSpec
from darkroom_api.uris import S3Location
from darkroom_trainer.dataset import Picture, describe
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.restoring import parse_manifest
from darkroom_trainer.sampling import Picture as Wanted
from darkroom_trainer.sampling import paint
from darkroom_trainer.services import Services

_PER_SET: Final = 16


def paint_class(
    spec: TrainingSpec,
    regularization: Regularization,
    model: StableDiffusion,
    *,
    prefix: S3Location,
    services: Services,
) -> list[Picture]:
    """Return the pictures of the class that a spec asks for, painted now or by an earlier attempt.

    Args:
        spec: The run's spec; sampler, steps and guidance are those of its samples, the size is the training's.
        regularization: What to paint.
        model: The base model, before anything is put into it.
        prefix: Where the run's objects lie.
        services: Store, reporter and stop.
    """
    assert regularization.class_ is not None
    pictures = []
    for number in range(-(-regularization.images // _PER_SET)):
        folder = services.work / "class-pictures" / f"{number:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        seeds = range(number * _PER_SET, min((number + 1) * _PER_SET, regularization.images))
        directory = regularization_directory(number)
        if not _fetch(directory, folder, prefix=prefix, services=services):
            _paint(spec, regularization, model, folder=folder, seeds=seeds, services=services)
            _publish(directory, folder, services)
        pictures += [describe(path, caption=regularization.class_) for path in sorted(folder.glob("*.png"))]
    services.publisher.flush()
    return pictures


def _fetch(directory: str, folder: Path, *, prefix: S3Location, services: Services) -> bool:
    """Bring back a set that is in the store, and tell whether it is."""
    text = services.store.find(prefix.join(directory, MANIFEST))
    manifest = parse_manifest(text) if text is not None else None
    if manifest is None:
        return False
    for file in manifest.files:
        services.stop.check()
        at = prefix.join(directory, file.name)
        services.store.download(at, folder / file.name, size=file.size_bytes, sha256=file.sha256)
    return True


def _paint(
    spec: TrainingSpec,
    regularization: Regularization,
    model: StableDiffusion,
    *,
    folder: Path,
    seeds: range,
    services: Services,
) -> None:
    for seed in seeds:
        services.reporter.stage(Stage.SAMPLING, f"Picture {seed + 1} of {regularization.images} of the class")
        wanted = Wanted(
            prompt=regularization.class_ or "",
            negative_prompt=spec.samples.negative_prompt,
            seed=seed,
            width=spec.training.resolution,
            height=spec.training.resolution,
            steps=spec.samples.steps,
            guidance_scale=spec.samples.guidance_scale,
            sampler=spec.samples.sampler,
        )
        picture = paint(model, wanted, encoding=spec.training.text_encoding, before_step=services.stop.check)
        picture.save(folder / f"class-{seed:06d}.png")


def _publish(directory: str, folder: Path, services: Services) -> None:
    """Hand over copies: the publisher removes what it has published."""
    copies = folder.with_name(f"{folder.name}-copies")
    copies.mkdir(exist_ok=True)
    files = [Path(shutil.copy2(path, copies)) for path in sorted(folder.glob("*.png"))]
    services.publisher.publish(directory, files, epoch=0, step=0)
