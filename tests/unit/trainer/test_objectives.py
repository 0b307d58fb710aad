"""The objective: the published formulas, by hand and against diffusers' own."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from darkroom_api.objectives import Huber, MultiresNoise, Objective, SmoothL1, Timesteps
from darkroom_trainer import objectives
from darkroom_trainer.families.configurations import SCHEDULER

ALPHAS = DDIMScheduler(**SCHEDULER).alphas_cumprod
CLEAN = torch.randn(4, 4, 16, 8, generator=torch.Generator().manual_seed(1))
PLAIN = Objective()


def noised(objective: Objective, *, clean: torch.Tensor = CLEAN) -> objectives.Noised:
    return objectives.add_noise(clean, ALPHAS, torch.Generator().manual_seed(2), objective=objective)


def test_noise_is_added_as_diffusers_does() -> None:
    ours = noised(PLAIN)
    theirs = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k in {"beta_start", "beta_end", "beta_schedule"}})
    assert torch.equal(ours.latents_BCHW, theirs.add_noise(CLEAN, ours.target_BCHW, ours.timesteps_B))


def test_a_given_noise_at_given_timesteps_is_added_as_diffusers_does() -> None:
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([0, 500, 999])
    ours = objectives.diffuse(clean, noise, timesteps, alphas_T=ALPHAS)
    theirs = DDPMScheduler(**{name: SCHEDULER[name] for name in ("beta_start", "beta_end", "beta_schedule")})
    assert torch.equal(ours.latents_BCHW, theirs.add_noise(clean, noise, timesteps))
    assert torch.equal(ours.timesteps_B, timesteps)


def test_a_noise_offset_moves_whole_channels() -> None:
    added = noised(Objective(noise_offset=0.5)).target_BCHW - noised(PLAIN).target_BCHW
    assert added.flatten(2).std(dim=2).max() < 1e-6
    means = added.mean(dim=(2, 3))
    assert len(set(means.flatten().tolist())) == 16  # one for each picture and channel
    assert 0.2 < means.std() < 0.8


def test_multires_noise_is_smooth_and_of_deviation_1() -> None:
    clean = torch.zeros(3, 4, 64, 48)
    plain = noised(PLAIN, clean=clean).target_BCHW
    pyramid = noised(Objective(multires_noise=MultiresNoise(iterations=6, discount=0.6)), clean=clean).target_BCHW
    assert pyramid.std(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1])

    def coarse(noise: torch.Tensor) -> float:
        return torch.nn.functional.avg_pool2d(noise, 8).std().item()

    assert coarse(pyramid) > 2 * coarse(plain)


def test_one_level_of_multires_noise_adds_noise_of_the_same_size() -> None:
    plain = noised(PLAIN).target_BCHW
    spec = MultiresNoise(iterations=1, discount=0.3)
    twice = objectives.pyramid_noise(plain, spec, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    torch.rand((), generator=generator)
    expected = plain + torch.randn(plain.shape, generator=generator)
    torch.testing.assert_close(twice, expected / expected.std(dim=(1, 2, 3), keepdim=True))


def test_input_perturbation_changes_what_is_seen_and_not_what_is_asked_for() -> None:
    plain, perturbed = noised(PLAIN), noised(Objective(input_perturbation=0.1))
    assert torch.equal(perturbed.target_BCHW, plain.target_BCHW)
    assert torch.equal(perturbed.timesteps_B, plain.timesteps_B)
    sigmas = (1 - ALPHAS[plain.timesteps_B]).sqrt().view(-1, 1, 1, 1)
    added = (perturbed.latents_BCHW - plain.latents_BCHW) / sigmas
    assert added.std().item() == pytest.approx(0.1, rel=0.1)


def test_timesteps_stay_in_their_range() -> None:
    spec = Objective(timesteps=Timesteps(minimum=300, maximum=303))
    drawn = noised(spec, clean=torch.zeros(200, 1, 1, 1)).timesteps_B
    assert set(drawn.tolist()) == {300, 301, 302}


def test_min_snr_weights() -> None:
    alphas = torch.tensor([0.99, 0.5, 0.1])  # signal-to-noise ratios of 99, 1 and 1/9
    steps = torch.tensor([0, 1, 2])
    assert objectives.weights(steps, alphas, Objective()).tolist() == [1, 1, 1]
    assert objectives.weights(steps, alphas, Objective(min_snr_gamma=5)).tolist() == pytest.approx([5 / 99, 1, 1])


def test_debiased_weights() -> None:
    alphas = torch.tensor([0.9999, 0.8, 0.5])  # ratios of 9999, which is cut to 1000, 4 and 1
    found = objectives.weights(torch.tensor([0, 1, 2]), alphas, Objective(debiased=True)).tolist()
    assert found == pytest.approx([1 / math.sqrt(1000), 0.5, 1], rel=1e-4)


def test_loss_is_the_weighted_mean_square_error() -> None:
    noise = torch.zeros(2, 1, 1, 2)
    seen = objectives.Noised(noise, noise, torch.tensor([0, 1]))
    predicted = torch.tensor([[1.0, 3.0], [2.0, 2.0]]).view(2, 1, 1, 2)
    assert objectives.loss(predicted, seen, torch.tensor([1.0, 0.5])).item() == (5 + 2) / 2
    assert objectives.losses(predicted, seen, torch.tensor([1.0, 0.5])).tolist() == [5, 2]
    assert math.isnan(objectives.loss(predicted * math.nan, seen, torch.ones(2)).item())


def test_huber_losses_by_hand() -> None:
    """Delta 0.75 and an error of 1: the root of 1 + 0.5625 is 1.25."""
    noise = torch.zeros(1, 1, 1, 1)
    seen = objectives.Noised(noise, noise, torch.tensor([7]))
    for kind, expected in (
        (Huber(delta=0.75, schedule="Constant"), 2 * 0.75 * 0.5),
        (SmoothL1(delta=0.75, schedule="Constant"), 2 * 0.5),
    ):
        assert objectives.loss(noise + 1, seen, torch.ones(1), kind=kind).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "small", "large"),
    [(Huber(delta=0.1, schedule="Constant"), 1e-6, 0.2 * 1000), (SmoothL1(delta=0.1, schedule="Constant"), 1e-5, 2000)],
)
def test_huber_losses_are_square_near_0_and_straight_far_away(
    kind: Huber | SmoothL1, small: float, large: float
) -> None:
    def count(error: float) -> float:
        return objectives.count_errors(kind, torch.full((1, 1, 1, 1), error).double(), torch.tensor([0])).item()

    assert count(1e-3) == pytest.approx(small, rel=1e-3)
    assert count(-1e-3) == count(1e-3)
    assert count(1000.0) == pytest.approx(large, rel=1e-3)


def test_delta_follows_its_schedule() -> None:
    alphas = torch.tensor([1.0, 0.5, 0.1, 0.0625])
    steps = torch.arange(4)

    def found(schedule: str) -> list[float]:
        return objectives.deltas(Huber.model_validate({"delta": 0.1, "schedule": schedule}), steps, alphas).tolist()

    assert found("Constant") == pytest.approx([0.1] * 4)
    assert found("Exponential") == pytest.approx([1, 10**-0.25, 10**-0.5, 10**-0.75])
    # Sigmas of 0, 1, 3 and the root of 15.
    assert found("SNR") == pytest.approx([1, 0.9 / 4 + 0.1, 0.9 / 16 + 0.1, 0.9 / (1 + math.sqrt(15)) ** 2 + 0.1])
