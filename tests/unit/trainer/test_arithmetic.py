"""Schedules, optimizers and the objective: their published formulas, and that no member of a union is without one."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from darkroom_api.networks import Network
from darkroom_api.optimizers import Adafactor, AdamW, Optimizer
from darkroom_api.schedules import Constant, Cosine, Schedule
from darkroom_api.training import Objective
from darkroom_trainer import objectives
from darkroom_trainer.adapters import inject
from darkroom_trainer.families.sd15 import SCHEDULER
from darkroom_trainer.optimizers import Group, build_optimizer, text_encoder_learning_rate
from darkroom_trainer.schedules import schedule_factor


def members(union: Any) -> set[type]:
    """Return the classes of a union, annotated or not, of one member or many."""
    if isinstance(union, type):
        return {union}
    inner = get_args(union)[0]
    return {inner} if isinstance(inner, type) else set(get_args(inner))


@pytest.mark.parametrize(
    ("union", "registry"),
    [(Optimizer, build_optimizer), (Schedule, schedule_factor), (Network, inject)],
    ids=["optimizer", "schedule", "network"],
)
def test_every_member_of_a_union_is_implemented(union: Any, registry: Any) -> None:
    assert set(registry.registry) - {object} == members(union)


def test_constant_rises_to_the_peak_and_stays() -> None:
    factors = [schedule_factor(Constant(warmup_steps=4), step, 10) for step in range(10)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert schedule_factor(Constant(), 0, 1) == 1


def test_cosine_goes_from_the_peak_to_its_minimum() -> None:
    cosine = Cosine(warmup_steps=2, minimum_factor=0.1)
    factors = [schedule_factor(cosine, step, 13) for step in range(13)]
    assert factors[:3] == [0.5, 1, 1]
    assert factors[7] == pytest.approx(0.55)  # half way down
    assert factors[-1] == pytest.approx(0.1)
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert schedule_factor(Cosine(warmup_steps=100), 5, 10) == pytest.approx(0.06)  # warm-up longer than the run
    assert schedule_factor(Cosine(), 0, 1) == 1


def test_the_text_encoder_learns_at_half_the_rate_unless_told() -> None:
    assert text_encoder_learning_rate(AdamW(learning_rate=4e-4)) == 2e-4
    assert text_encoder_learning_rate(AdamW(text_encoder_learning_rate=0)) == 0
    assert text_encoder_learning_rate(Adafactor(text_encoder_learning_rate=3e-5)) == 3e-5


def test_adamw_is_its_formula() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    spec = AdamW(learning_rate=0.1, weight_decay=0.5, beta1=0.8, beta2=0.9, epsilon=1e-3)
    optimizer = build_optimizer(spec, [Group([weight], 0.1)])
    weight.grad = torch.tensor([0.5, 3.0])
    optimizer.step()
    expected = [w * (1 - 0.1 * 0.5) - 0.1 * g / (abs(g) + 1e-3) for w, g in ((1.0, 0.5), (-2.0, 3.0))]
    assert weight.tolist() == pytest.approx(expected, rel=1e-5)


def test_groups_have_their_own_rates() -> None:
    groups = [Group([torch.nn.Parameter(torch.zeros(2))], rate) for rate in (1e-3, 5e-4)]
    for spec in (AdamW(), Adafactor()):
        assert [group["lr"] for group in build_optimizer(spec, groups).param_groups] == [1e-3, 5e-4]


def test_adafactor_moves_against_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = build_optimizer(Adafactor(learning_rate=0.01), [Group([weight], 0.01)])
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    assert (weight < 1).all()


def test_noise_is_added_as_diffusers_does() -> None:
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
    clean = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noised = objectives.add_noise(clean, alphas, torch.Generator().manual_seed(2))
    theirs = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k in {"beta_start", "beta_end", "beta_schedule"}})
    assert torch.equal(noised.latents_BCHW, theirs.add_noise(clean, noised.noise_BCHW, noised.timesteps_B))


def test_a_given_noise_at_given_timesteps_is_added_as_diffusers_does() -> None:
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([0, 500, 999])
    noised = objectives.diffuse(clean, noise, timesteps, alphas_T=alphas)
    theirs = DDPMScheduler(**{name: SCHEDULER[name] for name in ("beta_start", "beta_end", "beta_schedule")})
    assert torch.equal(noised.latents_BCHW, theirs.add_noise(clean, noise, timesteps))
    assert torch.equal(noised.timesteps_B, timesteps)


def test_min_snr_weights() -> None:
    alphas = torch.tensor([0.99, 0.5, 0.1])  # signal-to-noise ratios of 99, 1 and 1/9
    steps = torch.tensor([0, 1, 2])
    assert objectives.weights(steps, alphas, Objective()).tolist() == [1, 1, 1]
    assert objectives.weights(steps, alphas, Objective(min_snr_gamma=5)).tolist() == pytest.approx([5 / 99, 1, 1])


def test_loss_is_the_weighted_mean_square_error() -> None:
    noise = torch.zeros(2, 1, 1, 2)
    noised = objectives.Noised(noise, noise, torch.tensor([0, 1]))
    predicted = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).view(2, 1, 1, 2)
    assert objectives.loss(predicted, noised, torch.tensor([1.0, 0.5])).item() == (5 + 2) / 2
    assert objectives.losses(predicted, noised, torch.tensor([1.0, 0.5])).tolist() == [5, 2]
    assert math.isnan(objectives.loss(predicted * math.nan, noised, torch.ones(2)).item())
