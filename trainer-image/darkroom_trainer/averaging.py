"""The trained weights' exponential moving average, which checkpoints, samples and validation take if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Average:
    """A running average of weights, on their device and in their number format.

    The decay grows from 0.1 to the one asked for as (1 + step) / (10 + step), as in TensorFlow's
    ExponentialMovingAverage: the average is not stuck to where training began.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Hold the average instead of the trained weights."""
        trained = {name: parameter.data for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.data = self.tensors[name]
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = trained[name]
