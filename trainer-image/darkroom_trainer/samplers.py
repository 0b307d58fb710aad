"""How noise is taken away, by the API's names: diffusers' schedulers under a model's own noise schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

SAMPLERS: Final[dict[str, Callable[..., Any]]] = {
    "DDIM": DDIMScheduler.from_config,
    "Euler": EulerDiscreteScheduler.from_config,
    "EulerAncestral": EulerAncestralDiscreteScheduler.from_config,
    "DPMPlusPlus2M": DPMSolverMultistepScheduler.from_config,
    "DPMPlusPlus2MKarras": lambda config: DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True),
    "UniPC": UniPCMultistepScheduler.from_config,
}
DRAWS_NOISE: Final = frozenset({"DDIM", "EulerAncestral"})
"""Samplers that take a source of random numbers in their steps; DDIM draws none from it."""


def open_sampler(name: str, config: Any, *, steps: int, device: Any) -> Any:
    """Return a scheduler of diffusers that is ready to take so many steps."""
    scheduler = SAMPLERS[name](config)
    scheduler.set_timesteps(steps, device=device)
    return scheduler
