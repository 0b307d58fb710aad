"""Train with the trainer's own process and a real S3 server, and bring home what it left in the store."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.instruments.painting import BASE_MODEL
from benchmarks.instruments.sessions import open_run
from darkroom_api.layout import checkpoint_directory, weights_file
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.plan import RunPlan
from dev.cluster.storage import ObjectStore
from dev.demo.data import client
from examples.base_model.subjects import write_subject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

EXAMPLE = Path(__file__).parents[2] / "examples" / "lora-training.yaml"
RUN = "0123456789"
MODELS, STUDIO = "models", "studio"


@dataclass(frozen=True)
class Trained:
    """A run that succeeded."""

    name: str
    directory: Path
    """Everything that lay below the run's prefix."""
    wall_seconds: float
    processor_seconds: float

    def weights(self, epoch: int) -> Path:
        """Return the LoRA of an epoch."""
        return self.directory / checkpoint_directory(epoch) / weights_file(self.name, epoch=epoch)

    def metrics(self, epoch: int) -> dict[str, Any]:
        """Return what the trainer measured since the checkpoint before."""
        metrics: dict[str, Any] = json.loads(
            (self.directory / checkpoint_directory(epoch) / "metrics.json").read_text()
        )
        return metrics

    def validation_losses(self) -> dict[int, float]:
        """Return the validation loss of every epoch with a checkpoint."""
        index = json.loads((self.directory / "index.json").read_text())
        return {it["epoch"]: it["validationLoss"] for it in index["checkpoints"]}


def seconds_per_step(model: Path, *, steps: int = 20, warm_up: int = 5) -> float:
    """Return what a step of `examples/lora-training.yaml` costs this core, in seconds of work."""
    spec = LoraTrainingSpec.model_validate(yaml.safe_load(EXAMPLE.read_text())["spec"])
    with tempfile.TemporaryDirectory() as folder:
        write_subject("robot", Path(folder) / "pictures")
        session = open_run(model, spec, pictures=Path(folder) / "pictures", folder=Path(folder))
        for _ in range(warm_up):
            session.step()
        began = time.process_time()
        for _ in range(steps):
            session.step()
        return (time.process_time() - began) / steps


def example_spec(store: ObjectStore, *, example: str = EXAMPLE.name, **training: Any) -> dict[str, Any]:
    """Return the spec of one of the `examples` for a store, with fields of `training` changed."""
    spec: dict[str, Any] = yaml.safe_load(EXAMPLE.with_name(example).read_text())["spec"]
    spec["storage"] = {"endpointURL": store.endpoint.url}
    spec["baseModel"] = {"uri": f"s3://{MODELS}/{BASE_MODEL.name}"}
    spec["dataset"] = {"uri": f"s3://{STUDIO}/pictures"}
    spec["training"] |= training
    return spec


def upload_folder(s3: S3Client, folder: Path, prefix: str) -> None:
    """Put a folder's files below a prefix of the studio's bucket."""
    for path in sorted(it for it in folder.rglob("*") if it.is_file()):
        s3.upload_file(str(path), STUDIO, f"{prefix}/{path.relative_to(folder)}")


def download_run(s3: S3Client, prefix: str, directory: Path) -> None:
    """Bring home everything below a prefix of the studio's bucket."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=STUDIO, Prefix=f"{prefix}/"):
        for entry in page.get("Contents", []):
            target = directory / entry["Key"].removeprefix(f"{prefix}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(STUDIO, entry["Key"], str(target))


def train(
    store: ObjectStore, spec: dict[str, Any], *, name: str, directory: Path, kind: str = "LoraTraining"
) -> Trained:
    """Run the trainer to its end on one core and return what it left.

    Raises:
        RuntimeError: It failed; with the end of its log.
    """
    work = directory / "work"
    work.mkdir(parents=True)
    about = {"kind": kind, "name": name, "namespace": "studio", "uid": "u", "run": RUN}
    plan = RunPlan.model_validate({**about, "spec": spec})
    (work / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    environment = os.environ | store.endpoint.environment()
    environment |= {"DARKROOM_PLAN": str(work / "plan.json"), "DARKROOM_WORK": str(work / "scratch")}
    environment |= {"DARKROOM_TERMINATION_LOG": str(work / "termination"), "DARKROOM_PORT": "0", "OMP_NUM_THREADS": "1"}
    began, spent = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with (work / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "darkroom_trainer"], env=environment, stdout=log, stderr=log, check=False
        )
    wall, total = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"the trainer ended with {done.returncode}\n{(work / 'log').read_text()[-3000:]}")
    download_run(client(store.endpoint), plan.prefix.key, directory / "run")
    processor = total.ru_utime + total.ru_stime - spent.ru_utime - spent.ru_stime
    return Trained(name, directory / "run", wall, processor)


def bring_inputs(store: ObjectStore, model: Path, pictures: Path, *, validation: Path | None = None) -> None:
    """Make the buckets and upload the base model and the pictures."""
    s3 = client(store.endpoint)
    for bucket in (MODELS, STUDIO):
        s3.create_bucket(Bucket=bucket)
    s3.upload_file(str(model), MODELS, BASE_MODEL.name)
    upload_folder(s3, pictures, "pictures")
    if validation is not None:
        upload_folder(s3, validation, "validation")
