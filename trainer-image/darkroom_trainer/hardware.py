"""Device and arithmetic: accelerate finds them, here it is decided what is asked of them and what counts as wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from accelerate import Accelerator

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError
from darkroom_trainer.fitting import in_a_line

BASE_DTYPES: Final = {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16}
_MIXED: Final = {"FP32": "no", "BF16": "bf16", "FP16": "fp16"}


def open_accelerator(precision: str, *, gpus: int) -> Accelerator:
    """Take the device that the spec asks for, in deterministic mode.

    Raises:
        RunError: There is none, or it cannot calculate in this precision.
    """
    # Read by cuBLAS when it starts: without it, matrix products may differ between two equal runs.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if gpus and not torch.cuda.is_available():
        raise RunError(
            FailureReason.INTERNAL_ERROR,
            f"spec.compute.gpus: {gpus} is given, but torch sees no GPU in this pod",
            advice="Check the node's GPU driver and device plugin, or set compute.gpus to 0 to train on the CPU.",
        )
    if precision == "FP16" and not gpus:
        raise RunError(
            FailureReason.INVALID_SPEC, "spec.training.precision: FP16 needs a GPU; allowed on a CPU: FP32, BF16"
        )
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False
    return Accelerator(mixed_precision=_MIXED[precision], cpu=not gpus)


@contextmanager
def memory_limit(what: str = "the run", *, advice: str | None = None) -> Iterator[None]:
    """Turn an accelerator's lack of memory, after all that could be done about it, into the run's failure.

    Args:
        what: What it was needed for.
        advice: What to do; by default the reason's usual one.

    Raises:
        RunError: With how much there was.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(f"{what}: {in_a_line(error)}", advice) from error


def out_of_memory(message: str, advice: str | None = None) -> RunError:
    """Return the error of a run whose device has too little memory, with how much there is."""
    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    return RunError(
        FailureReason.ACCELERATOR_OUT_OF_MEMORY,
        f"the accelerator's {total / 2**30:.1f} GiB are not enough for {message}",
        advice=advice,
    )
