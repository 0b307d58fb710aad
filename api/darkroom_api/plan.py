"""What the operator hands to the pod: one immutable ``plan.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from darkroom_api.base import Model
from darkroom_api.kinds import TRAININGS
from darkroom_api.layout import run_prefix
from darkroom_api.training import TrainingSpec
from darkroom_api.uris import S3Location, parse_s3

_SPECS = {kind.name: kind.spec for kind in TRAININGS}


class RunPlan(Model):
    """A run with all defaults filled in and all references resolved."""

    kind: Literal["LoraTraining", "ModelTraining", "EmbeddingTraining"] = Field(description="Kind of the resource.")
    name: str = Field(min_length=1, max_length=253, description="Name of the resource.")
    namespace: str = Field(min_length=1, max_length=253, description="Namespace of the resource.")
    uid: str = Field(min_length=1, max_length=64, description="Its uid.")
    run: str = Field(pattern=r"^[0-9a-f]{10}$", description="The run id, see `darkroom_api.names.run_id`.")
    spec: SerializeAsAny[TrainingSpec] = Field(description="The whole spec, of the class that the kind has.")

    @field_validator("spec", mode="plain")
    @classmethod
    def _spec_of_the_kind(cls, value: Any, info: ValidationInfo) -> TrainingSpec:
        model = _SPECS.get(info.data.get("kind", ""))
        if model is None:
            raise ValueError("cannot be read without a kind that there is")
        return model.model_validate(value)

    @property
    def prefix(self) -> S3Location:
        """Return where everything of this run lies in the store."""
        return run_prefix(parse_s3(self.spec.output.uri), name=self.name, run=self.run)
