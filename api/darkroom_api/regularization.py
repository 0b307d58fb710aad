"""Pictures of the class that a subject belongs to: they keep a training from forgetting the class."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import ConfigDict, Field, model_validator

from darkroom_api.base import Model
from darkroom_api.storage import S3Uri

_ONE_SOURCE: Final = "give either uri or class, not both and not neither"


class Regularization(Model):
    """Pictures of the class that are trained on beside the subject's (Ruiz et al. 2023, arXiv 2208.12242, §3.3)."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "has(self.uri) != has(self.class)", "message": _ONE_SOURCE}]
        },
    )
    uri: S3Uri | None = Field(
        default=None,
        description="Prefix with pictures of the class, in the layout of dataset.uri: folders named REPEATS_CLASS, "
        "such as '1_robot'.",
    )
    class_: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        default=None,
        alias="class",
        description="Prompt of the class, such as 'photo of a robot'. The run paints the pictures itself, with the "
        "base model, before it trains.",
    )
    images: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Pictures to paint of class. Beside uri it means nothing: the folders say how many.",
    )
    prior_weight: float = Field(
        default=1.0, ge=0, le=10, description="Weight of these pictures' loss beside that of the dataset's, which is 1."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.uri is None) == (self.class_ is None):
            raise ValueError(_ONE_SOURCE)
        return self
