"""Why a run fails: the pod's exit codes and the reasons that a status shows, each with advice.

Exit codes follow sysexits.h where it has a fitting one, so that a Job's ``podFailurePolicy`` can tell
"never again" from "try again" without reading a log.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final


class ExitCode(IntEnum):
    """What the trainer's process exits with."""

    DONE = 0
    DATA = 65
    """EX_DATAERR: the dataset or the base model was rejected."""
    NO_INPUT = 66
    """EX_NOINPUT: a bucket, key or file does not exist."""
    UNAVAILABLE = 69
    """EX_UNAVAILABLE: the object store is away; retried."""
    SOFTWARE = 70
    """EX_SOFTWARE: a bug; retried, since some bugs are races."""
    PREEMPTED = 75
    """EX_TEMPFAIL: asked to stop, state saved; retried and not counted."""
    NO_PERMISSION = 77
    """EX_NOPERM: credentials are missing, wrong or too weak."""
    CONFIG = 78
    """EX_CONFIG: the spec is wrong in a way only the pod could see."""
    OUT_OF_MEMORY = 80
    """The accelerator ran out of memory and nothing more may be tried."""
    LOSS_NOT_FINITE = 81
    """The loss became NaN or infinite."""


NEVER_RETRIED: Final = (
    ExitCode.DATA,
    ExitCode.NO_INPUT,
    ExitCode.NO_PERMISSION,
    ExitCode.CONFIG,
    ExitCode.OUT_OF_MEMORY,
    ExitCode.LOSS_NOT_FINITE,
)


class FailureReason(StrEnum):
    """``status.failure.reason``."""

    ACCELERATOR_OUT_OF_MEMORY = "AcceleratorOutOfMemory"
    ACCESS_DENIED = "AccessDenied"
    DATASET_REJECTED = "DatasetRejected"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    IMAGE_PULL = "ImagePull"
    INTERNAL_ERROR = "InternalError"
    INVALID_SPEC = "InvalidSpec"
    LOSS_NOT_FINITE = "LossNotFinite"
    MODEL_REJECTED = "ModelRejected"
    NOT_FOUND = "NotFound"
    PREEMPTED = "Preempted"
    SCRATCH_FULL = "ScratchFull"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    UNSCHEDULABLE = "Unschedulable"


ADVICE: Final[dict[FailureReason, str]] = {
    FailureReason.ACCELERATOR_OUT_OF_MEMORY: "Lower training.batchSize or training.resolution, or give a larger GPU.",
    FailureReason.ACCESS_DENIED: "Check the Secret named in storage.credentials.secretName and what its key may do.",
    FailureReason.DATASET_REJECTED: "Mend the pictures or captions named in the message and apply again.",
    FailureReason.DEADLINE_EXCEEDED: "Raise activeDeadlineSeconds, or train fewer epochs.",
    FailureReason.HOST_OUT_OF_MEMORY: "Raise compute.resources.limits.memory.",
    FailureReason.IMAGE_PULL: "Check the trainer image's name and the node's access to its registry.",
    FailureReason.INTERNAL_ERROR: "Read the pod's log; if it is a bug of Darkroom, please report it with that log.",
    FailureReason.INVALID_SPEC: "Correct the field named in the message and apply under a new name.",
    FailureReason.LOSS_NOT_FINITE: "Lower the learning rate, or look for a broken picture.",
    FailureReason.MODEL_REJECTED: "Give a single-file checkpoint of the family that baseModel.family names.",
    FailureReason.NOT_FOUND: "Check the bucket and key in the message for typing errors.",
    FailureReason.PREEMPTED: "Nothing to do: the state is saved and the run goes on by itself.",
    FailureReason.SCRATCH_FULL: "Raise compute.scratchSize (or ephemeral-storage in compute.resources.limits).",
    FailureReason.STORAGE_UNAVAILABLE: "Check that storage.endpointURL answers from inside the cluster.",
    FailureReason.UNSCHEDULABLE: "Give the cluster a node that fits compute, or ask for less.",
}
"""One sentence for each reason; a failure may bring a more exact one."""

EXIT_CODES: Final[dict[FailureReason, ExitCode]] = {
    FailureReason.ACCELERATOR_OUT_OF_MEMORY: ExitCode.OUT_OF_MEMORY,
    FailureReason.ACCESS_DENIED: ExitCode.NO_PERMISSION,
    FailureReason.DATASET_REJECTED: ExitCode.DATA,
    FailureReason.INTERNAL_ERROR: ExitCode.SOFTWARE,
    FailureReason.INVALID_SPEC: ExitCode.CONFIG,
    FailureReason.LOSS_NOT_FINITE: ExitCode.LOSS_NOT_FINITE,
    FailureReason.MODEL_REJECTED: ExitCode.DATA,
    FailureReason.NOT_FOUND: ExitCode.NO_INPUT,
    FailureReason.PREEMPTED: ExitCode.PREEMPTED,
    FailureReason.STORAGE_UNAVAILABLE: ExitCode.UNAVAILABLE,
}
"""The exit code of every reason that a pod itself can give."""
