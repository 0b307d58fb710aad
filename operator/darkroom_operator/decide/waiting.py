"""How long a run may wait for something before a person should look: nothing may look healthy for ever.

Every bound is far above what a working cluster needs, and what is said past it holds no ages: a message that changed
by itself would be a write each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from darkroom_operator.decide.pods import Attempt, live
from darkroom_operator.objects import Object, metadata, parse_time

POD_EXPECTED: Final = timedelta(seconds=120)
"""For a Job's first pod: the Job controller works off a thousand Jobs at 20/s."""
NEXT_POD_EXPECTED: Final = timedelta(minutes=12)
"""For the pod after a failed one: the Job controller's own backoff goes up to 10 minutes."""
CONTAINER_EXPECTED: Final = timedelta(minutes=2)
"""For the volumes and the network of a pod."""
IMAGE_EXPECTED: Final = timedelta(minutes=30)
"""For the image of a pod that has its volumes and its network: images of trainers weigh gigabytes."""
END_EXPECTED: Final = timedelta(minutes=5)
"""For a pod's end beyond its grace period: the kubelet of a dead node never confirms it."""


@dataclass(frozen=True)
class Wait:
    """A wait that has a bound."""

    until: datetime
    reason: str
    message: str

    def left(self, now: datetime) -> float:
        """Return the seconds to the bound; 0: it is reached."""
        return max(0.0, (self.until - now).total_seconds())


def for_pod(job: Object, attempts: Sequence[Attempt], *, attempted: int, heard: datetime | None) -> Wait:
    """Return the wait for an active Job's next pod.

    Args:
        job: The Job.
        attempts: The pods that are still known.
        attempted: How many pods there have been.
        heard: When the last report came, of whichever pod.
    """
    status = job.get("status") or {}
    times = [parse_time(metadata(job).get("creationTimestamp")), parse_time(status.get("startTime")), heard]
    for attempt in attempts:
        times += [attempt.created, attempt.ending.finished if attempt.ending else None]
    bound = NEXT_POD_EXPECTED if attempted else POD_EXPECTED
    return Wait(
        max(time for time in times if time) + bound,
        "PodNotCreated",
        f"The Job cannot create its pod; 'kubectl describe job {metadata(job)['name']}' says why "
        "(a quota, a policy, or a missing service account).",
    )


def for_container(attempt: Attempt, *, ca_bundle: str | None) -> Wait:
    """Return the wait for a pod's container to be created."""
    bound = IMAGE_EXPECTED if attempt.is_prepared else CONTAINER_EXPECTED
    cause = f"the ConfigMap {ca_bundle!r} of storage.caBundle is missing, or " if ca_bundle else ""
    return Wait(
        (attempt.started or attempt.created) + bound,
        "ContainerNotCreated",
        f"The pod's container is not created; 'kubectl describe pod {attempt.pod}' says why "
        f"(perhaps {cause}a volume or the network is not ready, or the image is large).",
    )


def for_end(attempts: Sequence[Attempt]) -> Wait | None:
    """Return the wait for the end of the pod that has been asked to stop, if there is one."""
    stopping = [(attempt.ends_by, attempt.pod) for attempt in live(attempts) if attempt.ends_by]
    if not stopping:
        return None
    ends_by, pod = min(stopping)
    return Wait(
        ends_by + END_EXPECTED,
        "PodNotEnding",
        f"Pod {pod} was asked to stop and has not ended; 'kubectl describe pod {pod}' says where it is. If its node "
        f"is gone for good: 'kubectl delete pod {pod} --force'.",
    )
