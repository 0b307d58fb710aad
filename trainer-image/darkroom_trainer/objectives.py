"""What is minimised: the error of the predicted noise, weighted over timesteps. Validation measures the same.

Shapes: B batch, C channels, H and W of the latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from darkroom_api.training import Objective


@dataclass(frozen=True)
class Noised:
    """A batch on its way through the noise schedule."""

    latents_BCHW: torch.Tensor
    noise_BCHW: torch.Tensor
    timesteps_B: torch.Tensor


def add_noise(clean_BCHW: torch.Tensor, alphas_T: torch.Tensor, generator: torch.Generator) -> Noised:
    """Noise each latent to a timestep of its own, drawn uniformly.

    Args:
        clean_BCHW: Scaled latents.
        alphas_T: The schedule's cumulative products of alpha, one for each timestep, on the CPU.
        generator: Source of noise and timesteps, on the CPU.
    """
    noise_BCHW = torch.randn(clean_BCHW.shape, generator=generator)
    timesteps_B = torch.randint(0, len(alphas_T), (clean_BCHW.shape[0],), generator=generator)
    return diffuse(clean_BCHW, noise_BCHW, timesteps_B, alphas_T=alphas_T)


def diffuse(
    clean_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, timesteps_B: torch.Tensor, *, alphas_T: torch.Tensor
) -> Noised:
    """Noise each latent to its timestep with a given noise; noise and timesteps are on the CPU."""
    noise_BCHW = noise_BCHW.to(clean_BCHW.device)
    alphas_B111 = alphas_T[timesteps_B].view(-1, 1, 1, 1).to(clean_BCHW.device)
    noised_BCHW = alphas_B111.sqrt() * clean_BCHW + (1 - alphas_B111).sqrt() * noise_BCHW
    return Noised(noised_BCHW, noise_BCHW, timesteps_B)


def weights(timesteps_B: torch.Tensor, alphas_T: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Return the loss weight of each timestep: 1, or min(SNR, gamma) / SNR (arXiv 2303.09556, for epsilon)."""
    if objective.min_snr_gamma is None:
        return torch.ones(timesteps_B.shape)
    alphas_B = alphas_T[timesteps_B]
    snr_B = alphas_B / (1 - alphas_B)
    return snr_B.clamp(max=objective.min_snr_gamma) / snr_B


def loss(predicted_BCHW: torch.Tensor, noised: Noised, weights_B: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean square error of the predicted noise, in fp32."""
    return losses(predicted_BCHW, noised, weights_B).mean()


def losses(predicted_BCHW: torch.Tensor, noised: Noised, weights_B: torch.Tensor) -> torch.Tensor:
    """Return the loss of each picture of a batch (B)."""
    errors_B = (predicted_BCHW.float() - noised.noise_BCHW).square().mean(dim=(1, 2, 3))
    return errors_B * weights_B.to(errors_B.device)
