"""The part of the spec that every kind of training shares."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from darkroom_api.augmentation import Augmentation
from darkroom_api.base import Model
from darkroom_api.captions import Captions
from darkroom_api.compute import Compute
from darkroom_api.masks import Mask
from darkroom_api.memory import OutOfMemory
from darkroom_api.objectives import Objective
from darkroom_api.optimizers import AdamW, Optimizer
from darkroom_api.samples import Samples, Seed
from darkroom_api.schedules import Constant, Schedule
from darkroom_api.storage import DNS_NAME, S3Uri, Storage
from darkroom_api.text_encoding import TextEncoding
from darkroom_api.trackers import EACH_TYPE_ONCE, Tracker, each_type_once
from darkroom_api.validation import Validation

_SHA256_OF_FILES = "sha256 is that of a file; it cannot be given for a folder"
_FREE_OF_SCHEDULES = "schedule must be Constant, with or without warm-up, for optimizer ScheduleFreeAdamW"


class BaseModelSource(Model):
    """The model that training starts from: Stable Diffusion 1.5, 2.x or XL."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "!has(self.sha256) || !self.uri.endsWith('/')", "message": _SHA256_OF_FILES}
            ]
        },
    )
    uri: S3Uri = Field(
        description="Address of the file (.safetensors or .ckpt), s3://BUCKET/KEY, or "
        "of a folder in diffusers' layout, ending in /, of which the run makes one file."
    )
    family: Literal["SD15", "SD2", "SDXL"] | None = Field(
        default=None,
        description="Architecture. A file of another family is refused before anything is trained. Default: as its "
        "tensors tell.",
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        max_length=64,
        description="SHA-256 of the file, in hexadecimal; another file is refused.",
    )

    @property
    def is_folder(self) -> bool:
        """Tell whether it is a folder in diffusers' layout."""
        return self.uri.endswith("/")

    @model_validator(mode="after")
    def _sha256_is_of_a_file(self) -> Self:
        if self.sha256 is not None and self.is_folder:
            raise ValueError(_SHA256_OF_FILES)
        return self


class DatasetSource(Model):
    """The pictures: a TrainingDataset of this namespace or a prefix in kohya's layout."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.name) != has(self.uri)",
                    "message": "give either name or uri of the dataset, not both and not neither",
                }
            ]
        },
    )
    name: str | None = Field(
        default=None, min_length=1, max_length=253, pattern=DNS_NAME, description="Name of a TrainingDataset."
    )
    uri: S3Uri | None = Field(
        default=None,
        description="Prefix with folders named REPEATS_TRIGGER CLASS, such as '20_sks robot', "
        "each with pictures and captions of the same name (.txt).",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.name is None) == (self.uri is None):
            raise ValueError("give either name or uri of the dataset, not both and not neither")
        return self


class Buckets(Model):
    """Aspect-ratio buckets by kohya's rules: pictures keep their shape and are trained at about resolution² pixels."""

    enabled: bool = Field(default=True, description="False crops every picture to a square.")
    minimum: int = Field(default=256, ge=64, le=4096, description="Shortest side of a bucket in pixels.")
    maximum: int = Field(default=1024, ge=64, le=4096, description="Longest side of a bucket in pixels.")
    step: int = Field(default=64, ge=8, le=512, multiple_of=8, description="Sides are multiples of this many pixels.")
    upscale: bool = Field(
        default=True, description="False never enlarges a picture; its bucket then follows from its own size."
    )


class Training(Model):
    """How long, how large and how fast."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    # The server checks the rule against this object's own default {} before it fills in buckets.
                    "rule": "!has(self.buckets) || !self.buckets.enabled || "
                    "(self.buckets.minimum <= self.resolution && self.resolution <= self.buckets.maximum)",
                    "message": "resolution must lie between buckets.minimum and buckets.maximum",
                },
                {
                    "rule": "!has(self.buckets) || !self.buckets.enabled || self.buckets.step <= self.resolution",
                    "message": "buckets.step must be at most resolution",
                },
                {
                    "rule": "!has(self.optimizer) || !has(self.optimizer.type) || "
                    "self.optimizer.type != 'ScheduleFreeAdamW' || "
                    "!has(self.schedule) || !has(self.schedule.type) || self.schedule.type == 'Constant'",
                    "message": _FREE_OF_SCHEDULES,
                },
            ]
        },
    )
    epochs: int = Field(
        default=10, ge=1, le=10_000, description="Passes over the dataset, repeats counted. Steps follow from this."
    )
    batch_size: int = Field(default=1, ge=1, le=256, description="Pictures that pass through the model together.")
    gradient_accumulation: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Batches per optimizer step, of any buckets; an epoch's last step takes those that are left. "
        "The step follows the mean over all its pictures.",
    )
    maximum_gradient_norm: float = Field(
        default=1.0, ge=0, le=1000, description="Length above which a step's gradient is scaled down; 0: never."
    )
    resolution: int = Field(
        default=512,
        ge=64,
        le=4096,
        multiple_of=8,
        description="Side in pixels of the square whose area a bucket may fill.",
    )
    buckets: Buckets = Field(default_factory=Buckets, description="Aspect-ratio buckets.")
    optimizer: Optimizer = Field(default_factory=AdamW, description="How weights are updated.")
    schedule: Schedule = Field(default_factory=Constant, description="How the learning rate moves.")
    objective: Objective = Field(default_factory=Objective, description="What the loss weighs.")
    captions: Captions = Field(default_factory=Captions, description="What becomes of captions.")
    text_encoding: TextEncoding = Field(default_factory=TextEncoding, description="How captions and prompts are read.")
    augmentation: Augmentation = Field(
        default_factory=Augmentation, description="How pictures change from one showing to the next."
    )
    mask: Mask | None = Field(
        default=None, description="Which places of pictures are trained. Default: all of them alike."
    )
    precision: Literal["FP32", "BF16", "FP16"] = Field(
        default="FP32", description="Arithmetic of the model; the weights that are trained are kept in FP32 always."
    )
    gradient_checkpointing: bool = Field(default=False, description="Compute activations twice to hold fewer of them.")
    out_of_memory: OutOfMemory = Field(
        default="SplitBatchThenCheckpoint",
        description="What is done when a step does not fit into the GPU's memory; it is then repeated. SplitBatch "
        "passes its pictures through the model in ever smaller groups, by the same mathematics. "
        "SplitBatchThenCheckpoint also turns gradientCheckpointing on: the same again, more slowly. ReduceResolution, "
        "if even that is not enough, makes all buckets smaller, down to half of resolution, and so changes what is "
        "learnt. Fail does nothing of this. What was done stays so to the run's end and is in status.memory.",
    )
    seed: Seed = Field(default=42, description="All randomness of the run follows from this number.")

    @model_validator(mode="after")
    def _buckets_fit_the_resolution(self) -> Self:
        if self.buckets.enabled and not self.buckets.minimum <= self.resolution <= self.buckets.maximum:
            raise ValueError(
                f"resolution {self.resolution} must lie between buckets.minimum {self.buckets.minimum} "
                f"and buckets.maximum {self.buckets.maximum}"
            )
        if self.buckets.enabled and self.buckets.step > self.resolution:
            raise ValueError(f"buckets.step {self.buckets.step} must be at most resolution {self.resolution}")
        return self

    @model_validator(mode="after")
    def _schedule_suits_the_optimizer(self) -> Self:
        if self.optimizer.type == "ScheduleFreeAdamW" and self.schedule.type != "Constant":
            raise ValueError(_FREE_OF_SCHEDULES)
        return self


class Checkpoints(Model):
    """What is kept of the run."""

    every_epochs: int = Field(
        default=1, ge=1, le=10_000, description="Epochs between two checkpoints; the last epoch always has one."
    )
    precision: Literal["FP32", "FP16", "BF16"] = Field(
        default="FP16", description="Number format of the written weights."
    )
    state_every_seconds: int = Field(
        default=300,
        ge=1,
        le=86_400,
        description="Seconds between two saves of the resume state; every epoch and every stop saves it as well.",
    )

    @property
    def suffix(self) -> str:
        """Return how the names of the files of weights end."""
        return ".safetensors"


class Output(Model):
    """Where results go."""

    uri: S3Uri = Field(description="Prefix; the run writes below PREFIX/NAME-RUN, never elsewhere.")


class TrainingSpec(Model):
    """The fields that every kind of training has."""

    base_model: BaseModelSource = Field(description="What training starts from.")
    dataset: DatasetSource = Field(description="The pictures.")
    training: Training = Field(default_factory=Training, description="How long, how large and how fast.")
    checkpoints: Checkpoints = Field(default_factory=Checkpoints, description="What is kept of the run.")
    samples: Samples = Field(default_factory=Samples, description="Pictures painted before training and after epochs.")
    validation: Validation | None = Field(
        default=None,
        description="Measures each epoch on pictures that are not trained on, and so chooses the best. Default: off, "
        "since it holds back pictures, which a small dataset may need, or asks for others.",
    )
    trackers: Annotated[list[Tracker], AfterValidator(each_type_once)] = Field(
        default_factory=list,
        max_length=2,
        description="Experiment trackers that the run reports to as well, each type once. One that does not answer "
        "neither stops nor slows the run. TensorBoard's files lie in the store in any case, below events/.",
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "self.all(one, self.exists_one(other, other.type == one.type))", "message": EACH_TYPE_ONCE}
            ]
        },
    )
    output: Output = Field(description="Where results go.")
    storage: Storage = Field(default_factory=Storage, description="The store that every s3:// address means.")
    compute: Compute = Field(default_factory=Compute, description="Node resources of the pod.")
    suspend: bool = Field(
        default=False,
        description="True stops the pod after saving its state; false goes on exactly there. May be changed.",
    )
    backoff_limit: int = Field(
        default=3, ge=0, le=100, description="Retries after failures that a retry may mend. May be changed."
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Longest time the run may be active. May be changed. Default: none.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Seconds after which the finished Job and its pods are deleted; checkpoints stay. May be changed. "
        "Default: never.",
    )


MUTABLE_FIELDS = frozenset({"suspend", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"})
"""Fields of a training's spec that may change after creation, by their names on the wire."""
