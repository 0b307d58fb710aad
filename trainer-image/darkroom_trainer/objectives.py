"""What is minimised: the error of the predicted noise or v, weighted over timesteps. Validation measures the same.

Shapes: B batch, C channels, H and W of the latents, T timesteps that the model knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Final

import torch

from darkroom_api.objectives import L2, Huber, Loss, MultiresNoise, Objective, SmoothL1

_PLAIN: Final = Objective()
_MAXIMUM_SNR: Final = 1000.0
"""kohya's limit in the debiased weight: at timestep 0 some schedules have an infinite ratio."""


@dataclass(frozen=True)
class Noised:
    """A batch on its way through the noise schedule."""

    latents_BCHW: torch.Tensor
    target_BCHW: torch.Tensor
    """What the model is asked for: the noise, or v."""
    timesteps_B: torch.Tensor
    weights_B1HW: torch.Tensor | None = None
    """How much each place counts in the loss; None: all as much as the others."""

    def weighted(self, weights_B1HW: torch.Tensor | None) -> Noised:
        """Return the same batch with weights for its places."""
        return replace(self, weights_B1HW=weights_B1HW)


def add_noise(
    clean_BCHW: torch.Tensor,
    alphas_T: torch.Tensor,
    generator: torch.Generator,
    *,
    objective: Objective = _PLAIN,
    velocity: bool = False,
) -> Noised:
    """Noise each latent to a timestep of its own, drawn uniformly.

    Args:
        clean_BCHW: Scaled latents.
        alphas_T: The schedule's cumulative products of alpha, one for each timestep, on the CPU.
        generator: Source of noise and timesteps, on the CPU.
        objective: Which timesteps, and what is added to the noise.
        velocity: As for `diffuse`.
    """
    noise_BCHW = torch.randn(clean_BCHW.shape, generator=generator)
    timesteps = trained_timesteps(objective, alphas_T)
    timesteps_B = torch.randint(timesteps.start, timesteps.stop, (clean_BCHW.shape[0],), generator=generator)
    if objective.noise_offset:
        noise_BCHW += objective.noise_offset * torch.randn(*noise_BCHW.shape[:2], 1, 1, generator=generator)
    if objective.multires_noise is not None:
        noise_BCHW = pyramid_noise(noise_BCHW, objective.multires_noise, generator)
    seen_BCHW = noise_BCHW
    if objective.input_perturbation:  # Ning et al. 2023 (arXiv 2301.11706), algorithm 1: the target stays as it was
        seen_BCHW = noise_BCHW + objective.input_perturbation * torch.randn(noise_BCHW.shape, generator=generator)
    return diffuse(clean_BCHW, noise_BCHW, timesteps_B, alphas_T=alphas_T, seen_BCHW=seen_BCHW, velocity=velocity)


def trained_timesteps(objective: Objective, alphas_T: torch.Tensor) -> range:
    """Return the timesteps that the objective asks for, of those that the model knows."""
    return range(objective.timesteps.minimum, min(objective.timesteps.maximum, len(alphas_T)))


def diffuse(
    clean_BCHW: torch.Tensor,
    noise_BCHW: torch.Tensor,
    timesteps_B: torch.Tensor,
    *,
    alphas_T: torch.Tensor,
    seen_BCHW: torch.Tensor | None = None,
    velocity: bool = False,
) -> Noised:
    """Noise each latent to its timestep with a given noise.

    Args:
        clean_BCHW: Scaled latents.
        noise_BCHW: What the model is asked for, or what v is made of.
        timesteps_B: One timestep for each latent, on the CPU.
        alphas_T: As for `add_noise`.
        seen_BCHW: The noise that the latents get, where it is not the one asked for.
        velocity: Ask for v = sqrt(alpha) noise - sqrt(1 - alpha) clean (Salimans and Ho 2022, arXiv 2202.00512).
    """
    seen_BCHW = noise_BCHW if seen_BCHW is None else seen_BCHW
    noise_BCHW, seen_BCHW = noise_BCHW.to(clean_BCHW.device), seen_BCHW.to(clean_BCHW.device)
    alphas_B111 = alphas_T[timesteps_B].view(-1, 1, 1, 1).to(clean_BCHW.device)
    noised_BCHW = alphas_B111.sqrt() * clean_BCHW + (1 - alphas_B111).sqrt() * seen_BCHW
    if velocity:
        return Noised(noised_BCHW, alphas_B111.sqrt() * noise_BCHW - (1 - alphas_B111).sqrt() * clean_BCHW, timesteps_B)
    return Noised(noised_BCHW, noise_BCHW, timesteps_B)


def pyramid_noise(noise_BCHW: torch.Tensor, spec: MultiresNoise, generator: torch.Generator) -> torch.Tensor:
    """Add noise of ever coarser resolutions and bring each picture's noise back to a deviation of 1.

    After J. Whitaker, "Multi-Resolution Noise for Diffusion Model Training" (2023), with kohya's random factors.
    """
    height, width = noise_BCHW.shape[2:]
    for level in range(spec.iterations):
        factor = (2 + 2 * torch.rand((), generator=generator).item()) ** level
        size = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.randn(*noise_BCHW.shape[:2], *size, generator=generator)
        fine_BCHW = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        noise_BCHW = noise_BCHW + fine_BCHW * spec.discount**level
        if 1 in size:
            break
    return noise_BCHW / noise_BCHW.std(dim=(1, 2, 3), keepdim=True)


def joined(parts: Sequence[Noised], device: torch.device) -> Noised:
    """Put batches together on a device."""
    weights = [it.weights_B1HW for it in parts if it.weights_B1HW is not None]
    return Noised(
        torch.cat([it.latents_BCHW for it in parts]).to(device),
        torch.cat([it.target_BCHW for it in parts]).to(device),
        torch.cat([it.timesteps_B for it in parts]),
        torch.cat(weights).to(device) if weights else None,
    )


def weights(
    timesteps_B: torch.Tensor, alphas_T: torch.Tensor, objective: Objective, *, velocity: bool = False
) -> torch.Tensor:
    """Return the loss weight of each timestep.

    1; or min(SNR, gamma) / SNR (Hang et al. 2023, arXiv 2303.09556); or 1 / sqrt(SNR) (Yu et al. 2023, arXiv
    2310.08442). The error of v is that of the noise times (SNR + 1) / SNR, so its weights are the first divided by
    that; the second is kohya's 1 / (SNR + 1).
    """
    alphas_B = alphas_T[timesteps_B]
    snr_B = alphas_B / (1 - alphas_B)
    if objective.min_snr_gamma is not None:
        return snr_B.clamp(max=objective.min_snr_gamma) / (snr_B + 1 if velocity else snr_B)
    if objective.debiased:
        return 1 / (snr_B + 1) if velocity else snr_B.clamp(max=_MAXIMUM_SNR).rsqrt()
    return torch.ones(timesteps_B.shape)


def loss(
    predicted_BCHW: torch.Tensor,
    noised: Noised,
    weights_B: torch.Tensor,
    *,
    kind: Loss = _PLAIN.loss,
    alphas_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weighted mean error of a prediction; arguments as for `losses`."""
    return losses(predicted_BCHW, noised, weights_B, kind=kind, alphas_T=alphas_T).mean()


def losses(
    predicted_BCHW: torch.Tensor,
    noised: Noised,
    weights_B: torch.Tensor,
    *,
    kind: Loss = _PLAIN.loss,
    alphas_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weighted mean error of each picture's prediction (B), in fp32.

    Args:
        predicted_BCHW: What the model says.
        noised: What it saw.
        weights_B: Weight of each timestep.
        kind: How errors are counted.
        alphas_T: As for `add_noise`; a delta that moves with the signal-to-noise ratio needs them.
    """
    difference_BCHW = predicted_BCHW.float() - noised.target_BCHW
    errors_BCHW = count_errors(kind, difference_BCHW, noised.timesteps_B, alphas_T=alphas_T)
    if noised.weights_B1HW is not None:
        errors_BCHW = errors_BCHW * noised.weights_B1HW.to(errors_BCHW.device)
    errors_B = errors_BCHW.mean(dim=(1, 2, 3))
    return errors_B * weights_B.to(errors_B.device)


@singledispatch
def count_errors(
    kind: object, difference_BCHW: torch.Tensor, timesteps_B: torch.Tensor, *, alphas_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the loss of each number (B, C, H, W).

    Huber and SmoothL1 are kohya's: pseudo-Huber losses (Khrapov et al. 2024, arXiv 2403.16728) scaled so that small
    errors count as their square, or large ones as twice their size.
    """
    raise NotImplementedError(f"no loss for {type(kind).__name__}")


@count_errors.register
def _(
    kind: L2, difference_BCHW: torch.Tensor, timesteps_B: torch.Tensor, *, alphas_T: torch.Tensor | None = None
) -> torch.Tensor:
    return difference_BCHW.square()


@count_errors.register
def _(
    kind: Huber, difference_BCHW: torch.Tensor, timesteps_B: torch.Tensor, *, alphas_T: torch.Tensor | None = None
) -> torch.Tensor:
    deltas_B111 = deltas(kind, timesteps_B, alphas_T).view(-1, 1, 1, 1).to(difference_BCHW.device)
    return 2 * deltas_B111 * _rounded(difference_BCHW, deltas_B111)


@count_errors.register
def _(
    kind: SmoothL1, difference_BCHW: torch.Tensor, timesteps_B: torch.Tensor, *, alphas_T: torch.Tensor | None = None
) -> torch.Tensor:
    deltas_B111 = deltas(kind, timesteps_B, alphas_T).view(-1, 1, 1, 1).to(difference_BCHW.device)
    return 2 * _rounded(difference_BCHW, deltas_B111)


def _rounded(difference_BCHW: torch.Tensor, deltas_B111: torch.Tensor) -> torch.Tensor:
    """Return the error's size with its corner at 0 rounded off."""
    return (difference_BCHW.square() + deltas_B111.square()).sqrt() - deltas_B111


def deltas(kind: Huber | SmoothL1, timesteps_B: torch.Tensor, alphas_T: torch.Tensor | None) -> torch.Tensor:
    """Return each timestep's delta by the schedule of Khrapov et al. 2024 (arXiv 2403.16728) that is asked for."""
    if kind.schedule == "Constant":
        return torch.full(timesteps_B.shape, kind.delta)
    assert alphas_T is not None
    if kind.schedule == "Exponential":
        return torch.exp(math.log(kind.delta) / len(alphas_T) * timesteps_B)
    sigmas_B = ((1 - alphas_T) / alphas_T).sqrt()[timesteps_B]
    return (1 - kind.delta) / (1 + sigmas_B).square() + kind.delta
