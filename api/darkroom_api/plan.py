"""What the operator hands to the pod: one immutable ``plan.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from darkroom_api.base import Model
from darkroom_api.layout import run_prefix
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.uris import S3Location, parse_s3


class RunPlan(Model):
    """A run with all defaults filled in and all references resolved."""

    kind: Literal["LoraTraining"] = Field(description="Kind of the resource.")
    name: str = Field(min_length=1, max_length=253, description="Name of the resource.")
    namespace: str = Field(min_length=1, max_length=253, description="Namespace of the resource.")
    uid: str = Field(min_length=1, max_length=64, description="Its uid.")
    run: str = Field(pattern=r"^[0-9a-f]{10}$", description="The run id, see `darkroom_api.names.run_id`.")
    spec: LoraTrainingSpec = Field(description="The whole spec.")

    @property
    def prefix(self) -> S3Location:
        """Return where everything of this run lies in the store."""
        return run_prefix(parse_s3(self.spec.output.uri), name=self.name, run=self.run)
