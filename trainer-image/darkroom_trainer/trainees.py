"""What a run trains: an adapter, the model itself, or an embedding. Session, state and results know no more of it.

Neighbours: `networks.adapter` is that of a LoraTraining.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

Write = Callable[[Path, Mapping[str, str]], None]
"""Writes a checkpoint's file with this metadata."""


class Trainee(Protocol):
    """The weights that are trained, inside the model."""

    def named_parameters(self, part: str | None = None) -> dict[str, torch.nn.Parameter]:
        """Return the trained weights, of one part of the model or of all, always in the same order."""
        ...

    def rounded(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Hold the weights as a file of this number format would give them back, to paint what the file paints."""
        ...

    def draft(self, dtype: torch.dtype) -> Write:
        """Copy the weights to host memory and return what writes the copy to a file, in whatever thread.

        Raises:
            RunError: A weight is too large for this number format.
        """
        ...
