"""Reads pods: which attempt is the present one, how far it is, what holds it up, how it ended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from darkroom_api.names import TRAINER_CONTAINER
from darkroom_api.result import RunResult, decode_result
from darkroom_operator.decide.sanity import is_sane
from darkroom_operator.decide.snapshot import Snapshot
from darkroom_operator.objects import Object, condition, is_deleting, metadata, parse_time

_EPOCH = datetime.fromtimestamp(0, UTC)
_IMAGE_PULL = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_ERROR = "CreateContainerConfigError"
_OVERUSE = re.compile(
    r"Usage of EmptyDir volume .* exceeds the limit|ephemeral local storage usage exceeds the total limit"
    r"|exceeded its local ephemeral storage limit"
)
"""How a kubelet words that a pod outgrew limits of its own; a full node it words otherwise."""


@dataclass(frozen=True)
class Hindrance:
    """Why a pod does not start; it may go away, so it never fails a run."""

    reason: str
    message: str


@dataclass(frozen=True)
class Ending:
    """How the trainer's container ended."""

    exit_code: int
    reason: str
    finished: datetime | None
    result: RunResult | None


@dataclass(frozen=True)
class Attempt:
    """One pod of a run."""

    pod: str
    created: datetime
    started: datetime | None
    """When a kubelet took it over; None: no node ever had it."""
    running_since: datetime | None
    ip: str | None
    is_running: bool
    is_finished: bool
    """Nothing of it writes any more: it ended or is gone."""
    is_deleting: bool
    ends_by: datetime | None
    """When it must have ended that was asked to stop."""
    is_prepared: bool
    """Its volumes and its network are there."""
    disruption: str | None
    """Why the cluster took the pod away, if it did."""
    overuse: str | None
    """Which limit of its own on local storage the pod outgrew, if it did."""
    ending: Ending | None
    hindrance: Hindrance | None

    @property
    def succeeded(self) -> bool:
        return self.ending is not None and self.ending.exit_code == 0


def strangers(snapshot: Snapshot) -> list[Attempt]:
    """Return the unfinished pods that carry the run's label but are of no Job of it: they may write all the same."""
    return live(_attempt(pod, snapshot.run, is_gone=False) for pod in snapshot.strangers)


def attempts(snapshot: Snapshot) -> list[Attempt]:
    """Return the run's attempts that are still known, oldest first."""
    present = {metadata(pod)["name"] for pod in snapshot.pods}
    gone = [pod for pod in snapshot.departed_pods if metadata(pod)["name"] not in present]
    found = [_attempt(pod, snapshot.run, is_gone=False) for pod in snapshot.pods]
    found += [_attempt(pod, snapshot.run, is_gone=True) for pod in gone]
    return sorted(found, key=lambda attempt: (attempt.created, attempt.pod))


def live(known: Iterable[Attempt]) -> list[Attempt]:
    """Return the attempts that may still write."""
    return [attempt for attempt in known if not attempt.is_finished]


def _attempt(pod: Object, run: str, *, is_gone: bool) -> Attempt:
    status = pod.get("status") or {}
    container = _trainer(status)
    state = container.get("state") or {}
    running = state.get("running") or {}
    terminated = state.get("terminated") or {}
    phase = status.get("phase")
    since = running.get("startedAt") or terminated.get("startedAt")
    return Attempt(
        pod=metadata(pod)["name"],
        created=parse_time(metadata(pod).get("creationTimestamp")) or _EPOCH,
        started=parse_time(status.get("startTime")),
        running_since=parse_time(since),
        ip=status.get("podIP"),
        is_running=bool(running) and phase == "Running" and not is_gone,
        is_finished=is_gone or phase in {"Succeeded", "Failed"},
        is_deleting=is_deleting(pod),
        ends_by=parse_time(metadata(pod).get("deletionTimestamp")),
        is_prepared=condition(pod, "PodReadyToStartContainers") is not None,
        disruption=_disruption(pod),
        overuse=_overuse(pod),
        ending=_ending(terminated, run),
        hindrance=_hindrance(pod, state.get("waiting") or {}),
    )


def _trainer(status: Object) -> Object:
    for container in status.get("containerStatuses") or ():
        if container.get("name") == TRAINER_CONTAINER:
            found: Object = container
            return found
    return {}


def _ending(terminated: Object, run: str) -> Ending | None:
    if not terminated:
        return None
    result = decode_result(terminated.get("message") or "")
    # The message comes from the pod: of another run, or with numbers that no API server takes, it is none of ours.
    trusted = result if result and result.run == run and is_sane(result) else None
    return Ending(
        exit_code=int(terminated.get("exitCode", -1)),
        reason=terminated.get("reason") or "",
        finished=parse_time(terminated.get("finishedAt")),
        result=trusted,
    )


def _disruption(pod: Object) -> str | None:
    status = pod.get("status") or {}
    if found := condition(pod, "DisruptionTarget"):
        return str(found.get("message") or found.get("reason") or "the cluster took the pod away")
    if status.get("reason") in {"Evicted", "Preempting", "NodeShutdown", "NodeLost", "Terminated", "Shutdown"}:
        return str(status.get("message") or status["reason"])
    return None


def _overuse(pod: Object) -> str | None:
    status = pod.get("status") or {}
    message = str(status.get("message") or "").strip()
    return message if status.get("reason") == "Evicted" and _OVERUSE.search(message) else None


def _hindrance(pod: Object, waiting: Object) -> Hindrance | None:
    reason = str(waiting.get("reason") or "")
    message = str(waiting.get("message") or "")
    if reason in _IMAGE_PULL:
        return Hindrance("ImagePull", f"{reason}: {message}" if message else reason)
    if reason == _CONFIG_ERROR:
        return _config_error(pod, message)
    if reason in {"CreateContainerError", "RunContainerError"}:
        return Hindrance(reason, message)
    for entry in (pod.get("status") or {}).get("conditions") or ():
        if entry.get("type") == "PodScheduled" and entry.get("reason") == "Unschedulable":
            return Hindrance("Unschedulable", str(entry.get("message") or ""))
    return None


def _keys_wanted(pod: Object, secret: str) -> list[str]:
    """Return the keys that a pod's containers cannot do without, of a Secret, in their order."""
    references = [
        reference
        for container in (pod.get("spec") or {}).get("containers") or ()
        for variable in container.get("env") or ()
        if (reference := (variable.get("valueFrom") or {}).get("secretKeyRef")) and reference.get("name") == secret
    ]
    return [str(it["key"]) for it in references if not it.get("optional")]


def _config_error(pod: Object, message: str) -> Hindrance:
    """Tell which object a container waits for: a kubelet names it as ``secret "x" not found`` or by its missing key."""
    namespace = metadata(pod)["namespace"]
    if missing := re.search(r'secret "([^"]+)" not found', message):
        keys = _keys_wanted(pod, missing[1])
        holding = f" with {' and '.join(keys)}" if keys else ""
        field = "storage.credentials.secretName" if holding.startswith(" with AWS_") else "the secretName that names it"
        return Hindrance(
            "SecretNotFound",
            f"Secret {missing[1]!r} does not exist in namespace {namespace!r}; create it{holding}, or correct {field}.",
        )
    if missing := re.search(r"couldn't find key (\S+) in Secret (\S+)", message):
        return Hindrance("SecretKeyNotFound", f"Secret {missing[2]!r} has no key {missing[1]!r}; add it.")
    return Hindrance(_CONFIG_ERROR, message)
