"""Opens the trackers that a spec asks for, and tells all of them what is measured. A new tracker registers here."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, Final

from darkroom_api.failures import FailureReason
from darkroom_api.plan import RunPlan
from darkroom_api.trackers import MLflow, WandB
from darkroom_trainer.errors import RunError
from darkroom_trainer.tracking import mlflow
from darkroom_trainer.tracking.feed import About, Feed, Point, Tracker
from darkroom_trainer.tracking.weights_and_biases import WandBTracker

_TOLD: Final = (
    "baseModel",
    "dataset",
    "network",
    "parts",
    "ema",
    "embedding",
    "training",
    "checkpoints",
    "validation",
    "regularization",
)
"""Fields of a spec that say what is trained and how."""


@dataclass(frozen=True)
class Surroundings:
    """What a tracker's client may use."""

    path: str
    """Of its part of the spec, for messages."""
    environ: Mapping[str, str]
    directory: Path


@singledispatch
def open_tracker(spec: object, _about: About, _around: Surroundings) -> Tracker:
    """Return the client of a tracker; nothing is sent yet.

    Raises:
        RunError: It cannot be used as the spec and the pod are.
    """
    raise NotImplementedError(f"no tracker {type(spec).__name__}")


@open_tracker.register
def _(spec: MLflow, about: About, around: Surroundings) -> Tracker:
    token, user, password = (around.environ.get(key) for key, _ in MLflow.keys)
    if spec.credentials and not (token or (user and password)):
        raise RunError(
            FailureReason.ACCESS_DENIED,
            f"{around.path}.credentials.secretName: Secret {spec.credentials.secret_name} holds neither "
            "MLFLOW_TRACKING_TOKEN nor MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD",
            advice="Put these keys into the Secret, or leave credentials out for a server that asks nobody.",
        )
    server = mlflow.connect(spec.tracking_uri, around.environ)
    return mlflow.MLflowTracker(server, about, experiment=spec.experiment or about.namespace)


@open_tracker.register
def _(spec: WandB, about: About, around: Surroundings) -> Tracker:
    if importlib.util.find_spec("wandb") is None:
        raise RunError(
            FailureReason.INVALID_SPEC,
            f"{around.path}.type: WandB needs the package wandb, which this trainer image does not have",
            advice="Use a trainer image with the package wandb, or leave this tracker out.",
        )
    return WandBTracker(spec, about, environ=around.environ, directory=around.directory)


class Tracking:
    """All trackers of a run; every method returns at once but `close`."""

    def __init__(self, feeds: Sequence[Feed] = (), *, clock: Callable[[], float] = time.time) -> None:
        self._feeds, self._clock = feeds, clock

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Tell what was measured after a step."""
        point = Point(step, self._clock(), values)
        for feed in self._feeds:
            feed.put(point)

    def close(self, outcome: str, *, patience: float) -> None:
        """Tell how the run ended, and wait for so many seconds at most until each tracker has everything."""
        deadline = time.monotonic() + patience
        for feed in self._feeds:
            feed.finish(outcome)
        for feed in self._feeds:
            feed.wait(max(0.0, deadline - time.monotonic()))


def open_tracking(plan: RunPlan, environ: Mapping[str, str], directory: Path) -> Tracking:
    """Open all trackers of a plan.

    Raises:
        RunError: One of them cannot be used as the spec and the pod are.
    """
    about = About(plan.run, plan.name, plan.namespace, parameters(plan))
    opened = [
        open_tracker(spec, about, Surroundings(f"spec.trackers[{index}]", environ, directory / spec.type.lower()))
        for index, spec in enumerate(plan.spec.trackers)
    ]
    return Tracking([Feed(tracker) for tracker in opened])


def parameters(plan: RunPlan) -> dict[str, str]:
    """Return what is trained and how, each value by its dotted path in the spec."""
    spec = plan.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    flat: dict[str, str] = {"kind": plan.kind}
    for name in _TOLD:
        if name in spec:
            _flatten(spec[name], name, flat)
    return flat


def _flatten(value: Any, path: str, flat: dict[str, str]) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _flatten(inner, f"{path}.{name}", flat)
    else:
        flat[path] = value if isinstance(value, str) else json.dumps(value)
