"""The optimizers that a spec can ask for: each spec class has its builder here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch

from darkroom_api.optimizers import Adafactor, AdamW


@dataclass(frozen=True)
class Group:
    """Weights that share a peak learning rate."""

    parameters: Sequence[torch.nn.Parameter]
    learning_rate: float


@singledispatch
def build_optimizer(spec: object, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """Build the optimizer that a spec asks for, over groups of weights."""
    raise NotImplementedError(f"no optimizer for {type(spec).__name__}")


@build_optimizer.register
def _(spec: AdamW, groups: Sequence[Group]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        _as_dicts(groups),
        betas=(spec.beta1, spec.beta2),
        eps=spec.epsilon,
        weight_decay=spec.weight_decay,
        fused=True,  # one kernel for all of an adapter's hundreds of small tensors
    )


@build_optimizer.register
def _(spec: Adafactor, groups: Sequence[Group]) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(
        _as_dicts(groups), beta2_decay=spec.beta2_decay, d=spec.clip_threshold, weight_decay=spec.weight_decay
    )


def text_encoder_learning_rate(spec: AdamW | Adafactor) -> float:
    """Return the text encoder's peak rate: half of the UNet's unless given, since it overtrains sooner."""
    given = spec.text_encoder_learning_rate
    return spec.learning_rate / 2 if given is None else given


def _as_dicts(groups: Sequence[Group]) -> list[dict[str, object]]:
    return [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups]
