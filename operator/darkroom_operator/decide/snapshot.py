"""What goes into a decision and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from darkroom_api.names import child_name
from darkroom_api.progress import Progress
from darkroom_operator.objects import Key, Object, Resource, metadata


@dataclass(frozen=True)
class Observation:
    """A report of a pod, and when it was received by the operator's own clock: the pod's clock is not to be trusted."""

    pod: str
    progress: Progress
    received: datetime


@dataclass(frozen=True)
class Trouble:
    """A write that the API server refused, for the status to tell.

    `is_final` where asking again cannot help, since the spec does not change.
    """

    reason: str
    message: str
    is_final: bool


@dataclass(frozen=True)
class Snapshot:
    """All that is known of one training."""

    resource: Resource
    """The kind of the training."""
    training: Object
    run: str
    job: Object | None = None
    config_map: Object | None = None
    pods: tuple[Object, ...] = ()
    strangers: tuple[Object, ...] = ()
    """Pods with the run's label that the run's Job does not control, such as those of a Job deleted without them."""
    departed_pods: tuple[Object, ...] = ()
    """Last states of pods that are gone."""
    observation: Observation | None = None
    trouble: Trouble | None = None

    @property
    def key(self) -> Key:
        return Key(self.resource.kind, self.namespace, self.name)

    @property
    def name(self) -> str:
        return str(metadata(self.training)["name"])

    @property
    def namespace(self) -> str:
        return str(metadata(self.training)["namespace"])

    @property
    def uid(self) -> str:
        return str(metadata(self.training)["uid"])

    @property
    def generation(self) -> int:
        return int(metadata(self.training).get("generation", 0))

    @property
    def child(self) -> str:
        """Name of the Job and of the ConfigMap."""
        return child_name(self.name, self.run)


@dataclass(frozen=True)
class CreateConfigMap:
    """Create the run's plan."""

    body: Object


@dataclass(frozen=True)
class CreateJob:
    """Create the run's Job."""

    body: Object


@dataclass(frozen=True)
class PatchJob:
    """Change mutable fields of the Job's spec."""

    name: str
    spec: Object


@dataclass(frozen=True)
class DeleteJob:
    """Delete the Job, and free its name only when its pods are gone."""

    name: str
    uid: str


Action = CreateConfigMap | CreateJob | PatchJob | DeleteJob


@dataclass(frozen=True)
class PodAddress:
    """Whom to ask for progress."""

    pod: str
    ip: str
    run: str


@dataclass(frozen=True)
class Note:
    """A Kubernetes event to be posted."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
    cause: str
    """The transition that it tells of: the same again when the decision is made again."""


@dataclass(frozen=True)
class Plan:
    """What to do now, in this order: actions, events, status."""

    actions: tuple[Action, ...] = ()
    events: tuple[Note, ...] = ()
    status_patch: Object = field(default_factory=dict)
    """JSON merge patch of the status; empty: nothing to write."""
    requeue_after: float | None = None
    poll: PodAddress | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be written."""
        return not (self.actions or self.events or self.status_patch)
