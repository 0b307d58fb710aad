"""A device of little memory, on a machine that has plenty: a model's part that raises what torch would raise.

The error is torch's own class, raised from within the forward pass, so everything above behaves as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 7.79 GiB"
Fits = Callable[[torch.Tensor], bool]


@contextmanager
def little_memory(module: torch.nn.Module, fits: Fits) -> Iterator[list[torch.Size]]:
    """Let a module run out of memory for what does not fit; yields the shapes for which it did."""
    refused: list[torch.Size] = []

    def before_forward(_: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if not fits(given[0]):
            refused.append(given[0].shape)
            raise torch.OutOfMemoryError(MESSAGE)

    handle = module.register_forward_pre_hook(before_forward)
    try:
        yield refused
    finally:
        handle.remove()
