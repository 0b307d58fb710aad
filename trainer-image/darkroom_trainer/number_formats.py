"""Number formats of written weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError

DTYPES: Final = {"FP32": torch.float32, "FP16": torch.float16, "BF16": torch.bfloat16}


def copied(weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return copies in host memory, in a number format.

    Raises:
        RunError: A weight is too large for it.
    """
    tensors = {name: it.detach().to("cpu", dtype, copy=True).contiguous() for name, it in weights.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise RunError(
                FailureReason.LOSS_NOT_FINITE,
                f"spec.checkpoints.precision: {name} holds numbers that are not finite in {_name(dtype)}",
                advice="Apply the training under a new name with checkpoints.precision FP32 or BF16, which hold larger "
                "numbers, or with a lower learning rate.",
            )
    return tensors


@contextmanager
def held_as(weights: Iterable[torch.nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Hold weights as a file of a number format would give them back, and afterwards as they were."""
    exact = [(weight, weight.data) for weight in weights]
    for weight, data in exact:
        weight.data = data.to(dtype).to(data.dtype)
    try:
        yield
    finally:
        for weight, data in exact:
            weight.data = data


def _name(dtype: torch.dtype) -> str:
    return next(name for name, it in DTYPES.items() if it == dtype)
