"""The optimizers that a spec can ask for: each spec class has its builder here.

Packages beyond torch are imported by the builder that needs one, since each costs seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch

from darkroom_api.optimizers import (
    CAME,
    Adafactor,
    AdamW,
    AdamW8bit,
    DAdaptAdam,
    Lion,
    Optimizer,
    Prodigy,
    ScheduleFreeAdamW,
    TrainsTextEncoder,
)
from darkroom_trainer.late_imports import reveal


@dataclass(frozen=True)
class Group:
    """Weights that share a peak learning rate."""

    parameters: Sequence[torch.nn.Parameter]
    learning_rate: float


@singledispatch
def build_optimizer(spec: object, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """Build the optimizer that a spec asks for, over groups of weights; weight decay is decoupled in all."""
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
def _(spec: AdamW8bit, groups: Sequence[Group]) -> torch.optim.Optimizer:
    return _built(
        reveal("bitsandbytes").optim.AdamW8bit(
            _as_dicts(groups), betas=(spec.beta1, spec.beta2), eps=spec.epsilon, weight_decay=spec.weight_decay
        )
    )


@build_optimizer.register
def _(spec: Lion, groups: Sequence[Group]) -> torch.optim.Optimizer:
    from pytorch_optimizer import Lion as Implementation

    return _built(Implementation(_as_dicts(groups), betas=(spec.beta1, spec.beta2), weight_decay=spec.weight_decay))


@build_optimizer.register
def _(spec: Adafactor, groups: Sequence[Group]) -> torch.optim.Optimizer:
    if spec.relative_step:  # torch's has no other way
        return torch.optim.Adafactor(
            _as_dicts(groups), beta2_decay=spec.beta2_decay, d=spec.clip_threshold, weight_decay=spec.weight_decay
        )
    from transformers.optimization import Adafactor as Implementation

    return _built(
        Implementation(
            _as_dicts(groups),
            lr=spec.learning_rate,
            decay_rate=spec.beta2_decay,
            clip_threshold=spec.clip_threshold,
            weight_decay=spec.weight_decay,
            scale_parameter=False,
            relative_step=False,
        )
    )


@build_optimizer.register
def _(spec: CAME, groups: Sequence[Group]) -> torch.optim.Optimizer:
    from pytorch_optimizer import CAME as Implementation  # noqa: N811 - the class is named so

    return _built(
        Implementation(
            _as_dicts(groups),
            betas=(spec.beta1, spec.beta2, spec.instability_beta),
            clip_threshold=spec.clip_threshold,
            weight_decay=spec.weight_decay,
        )
    )


@build_optimizer.register
def _(spec: Prodigy, groups: Sequence[Group]) -> torch.optim.Optimizer:
    from pytorch_optimizer import Prodigy as Implementation

    return _built(
        Implementation(
            _as_dicts(groups),
            betas=(spec.beta1, spec.beta2),
            beta3=spec.d_beta,
            d0=spec.initial_d,
            d_coef=spec.d_coefficient,
            growth_rate=spec.growth_rate or math.inf,
            weight_decay=spec.weight_decay,
            bias_correction=spec.use_bias_correction,
            safeguard_warmup=spec.safeguard_warmup,
            eps=spec.epsilon,
        )
    )


@build_optimizer.register
def _(spec: DAdaptAdam, groups: Sequence[Group]) -> torch.optim.Optimizer:
    from pytorch_optimizer import DAdaptAdam as Implementation

    return _built(
        Implementation(
            _as_dicts(groups),
            betas=(spec.beta1, spec.beta2),
            d0=spec.initial_d,
            growth_rate=spec.growth_rate or math.inf,
            weight_decay=spec.weight_decay,
            weight_decouple=True,  # its default adds the decay to the gradient
            bias_correction=spec.use_bias_correction,
            eps=spec.epsilon,
        )
    )


@build_optimizer.register
def _(spec: ScheduleFreeAdamW, groups: Sequence[Group]) -> torch.optim.Optimizer:
    from pytorch_optimizer import ScheduleFreeAdamW as Implementation

    return _built(
        Implementation(
            _as_dicts(groups),
            betas=(spec.beta1, spec.beta2),
            weight_decay=spec.weight_decay,
            r=spec.averaging_power,
            weight_lr_power=spec.rate_weight_power,
            eps=spec.epsilon,
        )
    )


def text_encoder_learning_rate(spec: Optimizer) -> float:
    """Return the text encoder's peak rate: a share of the UNet's unless given, and 0 where it is never trained."""
    if not isinstance(spec, TrainsTextEncoder):
        return 0.0
    given = spec.text_encoder_learning_rate
    return spec.learning_rate * spec.text_encoder_share if given is None else given


def rate_in_force(spec: Optimizer, optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Return the learning rate of the coming step: the scheduled one, times the step size where that is learnt."""
    return rate * float(optimizer.param_groups[0]["d"]) if spec.learns_step_size else rate


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Hold the weights that are meant to be used, where an optimizer trains at others; then exactly the latter again.

    Copies are put back: the optimizer's own way there and back rounds every weight twice.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.clone()
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        for parameter, data in zip(parameters, trained, strict=True):
            parameter.data = data


def _as_dicts(groups: Sequence[Group]) -> list[dict[str, object]]:
    return [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups]


def _built(optimizer: Any) -> torch.optim.Optimizer:
    """Take what a package without types has built for what it is."""
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer
