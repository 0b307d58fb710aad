"""Experiment trackers that a run reports to besides the store. A new one is a class here and its client in the trainer.

TensorBoard needs nothing of this: its files lie in the store, below ``events/``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from darkroom_api.base import Model
from darkroom_api.storage import DNS_NAME

_SERVER: Final = r"^https?://[^\s@]+$"
_CREDENTIALS: Final = (
    "Secret that opens the tracker. MLflow: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD; left out for a server that asks nobody. WandB: WANDB_API_KEY."
)
EACH_TYPE_ONCE: Final = "each type of tracker may be given once"


class TrackerCredentials(Model):
    """A Secret of this namespace with the keys of a tracker; they become variables of the pod by the same names."""

    secret_name: str = Field(
        min_length=1, max_length=253, pattern=DNS_NAME, description="Name of the Secret, in this namespace."
    )


class MLflow(Model):
    """An MLflow tracking server, by its REST API 2.0."""

    keys: ClassVar[tuple[tuple[str, bool], ...]] = (
        ("MLFLOW_TRACKING_TOKEN", True),
        ("MLFLOW_TRACKING_USERNAME", True),
        ("MLFLOW_TRACKING_PASSWORD", True),
    )
    """Keys of the Secret, and whether each may be missing."""

    type: Literal["MLflow"] = "MLflow"
    tracking_uri: str = Field(
        alias="trackingURI",
        max_length=2048,
        pattern=_SERVER,
        description="Address of the server, such as https://mlflow.example.com. It is asked from inside the pod; a "
        "certificate may be of storage.caBundle.",
    )
    experiment: str | None = Field(
        default=None,
        min_length=1,
        max_length=250,
        description="Name of the experiment, which is made if need be. Default: the namespace.",
    )
    credentials: TrackerCredentials | None = Field(default=None, description=_CREDENTIALS)


class WandB(Model):
    """Weights & Biases, in the cloud or a server of one's own."""

    keys: ClassVar[tuple[tuple[str, bool], ...]] = (("WANDB_API_KEY", False),)

    type: Literal["WandB"] = "WandB"
    base_url: str | None = Field(
        default=None,
        alias="baseURL",
        max_length=2048,
        pattern=_SERVER,
        description="Address of a server of one's own. Default: https://api.wandb.ai.",
    )
    entity: str | None = Field(
        default=None, min_length=1, max_length=128, description="User or team. Default: the key's own."
    )
    project: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        pattern=r"^[^/\\#?%:]+$",
        description="Name of the project, which is made if need be. Default: the namespace.",
    )
    credentials: TrackerCredentials = Field(description=_CREDENTIALS)


Tracker = Annotated[MLflow | WandB, Field(discriminator="type")]


def each_type_once(trackers: list[Tracker]) -> list[Tracker]:
    """Accept trackers of different types; two of one would need the same variables of the pod.

    Raises:
        ValueError: A type is given twice.
    """
    if len({tracker.type for tracker in trackers}) < len(trackers):
        raise ValueError(EACH_TYPE_ONCE)
    return trackers
