"""Optimizers on a small problem: rates, decay, what is reported, the weights that are handed over, and exact resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from darkroom_api.failures import FailureReason
from darkroom_api.optimizers import AdamW, Optimizer
from darkroom_api.rates import EmbeddingAdamW, LoraAdamW, LoraProdigy, LoraScheduleFreeAdamW, ModelAdamW
from darkroom_trainer import state
from darkroom_trainer.errors import RunError
from darkroom_trainer.optimizers import (
    Group,
    build_optimizer,
    evaluation_weights,
    rate_in_force,
    text_encoder_learning_rate,
)

ALL: list[dict[str, Any]] = [
    {"type": "AdamW"},
    {"type": "AdamW8bit"},
    {"type": "Lion"},
    {"type": "Adafactor"},
    {"type": "Adafactor", "relativeStep": True},
    {"type": "CAME"},
    {"type": "Prodigy", "initialD": 0.01, "safeguardWarmup": True, "useBiasCorrection": True},
    {"type": "DAdaptAdam", "initialD": 0.01},
    {"type": "ScheduleFreeAdamW"},
]
each_optimizer = pytest.mark.parametrize(
    "given", ALL, ids=lambda it: it["type"] + ("-relative" if "relativeStep" in it else "")
)


def spec_of(given: dict[str, Any]) -> Any:
    return TypeAdapter(Optimizer).validate_python(given)


class Problem:
    """Two factors, as in a LoRA, that learn a product; one is large enough for 8-bit moments."""

    def __init__(self, given: dict[str, Any], *, rate: float | None = None) -> None:
        self.spec = spec_of(given)
        generator = torch.Generator().manual_seed(3)
        self.down = torch.nn.Parameter(torch.randn(48, 96, generator=generator) / 10)
        self.up = torch.nn.Parameter(torch.zeros(8, 48))
        self.inputs = torch.randn(64, 96, generator=generator)
        self.wanted = torch.randn(64, 8, generator=generator)
        self.rate = self.spec.learning_rate if rate is None else rate
        self.optimizer = build_optimizer(self.spec, [Group([self.down], self.rate), Group([self.up], self.rate)])
        self.losses: list[float] = []

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        return {"down": self.down, "up": self.up}

    def step(self, *, factor: float = 1.0) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        # Other inputs at each step, so that a state of another step would not do.
        rows = slice(len(self.losses) * 7 % 32, None)
        loss = (self.inputs[rows] @ self.down.T @ self.up.T - self.wanted[rows]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def loss(self) -> float:
        """Return the loss over all inputs."""
        with torch.no_grad():
            return (self.inputs @ self.down.T @ self.up.T - self.wanted).square().mean().item()

    def values(self) -> list[torch.Tensor]:
        return [self.down.detach().clone(), self.up.detach().clone()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@each_optimizer
def test_it_learns(given: dict[str, Any]) -> None:
    relative = given["type"] in {"Prodigy", "DAdaptAdam"} or "relativeStep" in given
    problem = Problem({key: it for key, it in given.items() if key != "initialD"}, rate=1.0 if relative else 0.01)
    before = problem.loss()
    for _ in range(100):
        problem.step()
    assert problem.loss() < 0.8 * before


@each_optimizer
def test_a_saved_state_goes_on_bit_for_bit(given: dict[str, Any], tmp_path: Path) -> None:
    """Also into an optimizer that has already gone elsewhere, and from before the first step."""
    factors = [0, 0.5, 1, 1, 0.9, 0.7, 0.5, 0.2]  # a warm-up from 0 and a descent
    straight = Problem(given)
    for stop, factor in enumerate(factors):
        capture(straight).write(tmp_path / f"{stop}")
        straight.step(factor=factor)
    begun = Problem(given)
    assert not equal(begun.values(), straight.values())

    for stop in (0, 1, 3, 6):
        for steps_elsewhere in (0, 2):
            resumed = Problem(given)
            for _ in range(steps_elsewhere):
                resumed.step()
            resumed.losses = straight.losses[:stop]
            load(resumed, tmp_path / f"{stop}")
            for factor in factors[stop:]:
                resumed.step(factor=factor)
            assert resumed.losses == straight.losses, (stop, steps_elsewhere)
            assert equal(resumed.values(), straight.values()), (stop, steps_elsewhere)


def capture(problem: Problem) -> state.Snapshot:
    return state.capture(
        state.Position(), parameters=problem.weights, optimizer=problem.optimizer, scaler={}, averages={}, inputs="same"
    )


def load(problem: Problem, directory: Path) -> None:
    state.load(directory, parameters=problem.weights, optimizer=problem.optimizer, averages={}, inputs="same")


@pytest.mark.parametrize("kind", ["Prodigy", "DAdaptAdam"])
def test_a_learnt_step_size_is_part_of_the_state(kind: str, tmp_path: Path) -> None:
    problem = Problem({"type": kind})
    for _ in range(5):
        problem.step()
    learnt = problem.optimizer.param_groups[0]["d"]
    assert learnt > 2e-6  # began at 1e-6
    capture(problem).write(tmp_path)
    fresh = Problem({"type": kind})
    load(fresh, tmp_path)
    assert [group["d"] for group in fresh.optimizer.param_groups] == [learnt, learnt]


def test_eight_bits_are_kept_as_eight_bits() -> None:
    problem = Problem({"type": "AdamW8bit"})
    problem.step()
    moments = capture(problem).moments
    assert {moments["0.state1"].dtype, moments["0.state2"].dtype} == {torch.uint8}
    assert moments["1.state1"].dtype == torch.float32  # too small to be worth it


def test_a_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    capture(Problem({"type": "Lion"})).write(tmp_path / "lion")
    with pytest.raises(RunError, match="cannot be read: it holds the state of Lion, the spec asks for AdamW"):
        load(Problem({"type": "AdamW"}), tmp_path / "lion")


def test_a_state_of_an_older_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    problem = Problem({"type": "AdamW"})
    capture(problem).write(tmp_path / "old")
    file = tmp_path / "old" / state.NUMBERS
    file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(RunError, match="the saved state old has format 1, this trainer reads 2") as caught:
        load(problem, tmp_path / "old")
    assert caught.value.reason is FailureReason.INVALID_SPEC
    assert "under a new name" in caught.value.advice


@each_optimizer
def test_weight_decay_is_the_given_share_times_the_rate_in_force(given: dict[str, Any]) -> None:
    rate = 1.0 if "initialD" in given else 0.01
    decayed, plain = (Problem({**given, "weightDecay": decay}, rate=rate) for decay in (0.5, 0.0))
    before = decayed.values()
    for problem in (decayed, plain):
        problem.step()
    # Bias correction is part of the rate by which Prodigy steps: 1/sqrt(1000) * 10 at the first.
    correction = (1 - 0.999) ** 0.5 / (1 - 0.9) if given.get("useBiasCorrection") else 1.0
    in_force = rate_in_force(decayed.spec, build_optimizer(decayed.spec, [Group([decayed.down], rate)]), rate)
    expected = before[0] * 0.5 * in_force * correction
    torch.testing.assert_close(plain.values()[0] - decayed.values()[0], expected, rtol=1e-3, atol=1e-6)


@each_optimizer
def test_groups_have_their_own_rates(given: dict[str, Any]) -> None:
    spec = spec_of(given)
    groups = [Group([torch.nn.Parameter(torch.zeros(2))], rate) for rate in (1e-3, 5e-4)]
    assert [group["lr"] for group in build_optimizer(spec, groups).param_groups] == [1e-3, 5e-4]


@each_optimizer
def test_the_rate_in_force_is_reported(given: dict[str, Any]) -> None:
    """torch's Adafactor keeps a `d` too, which is something else."""
    problem = Problem(given)
    learnt = given.get("initialD", 1.0)
    assert rate_in_force(problem.spec, problem.optimizer, 0.25) == pytest.approx(0.25 * learnt)
    for _ in range(3):
        problem.step()
    grown = problem.optimizer.param_groups[0]["d"] if "initialD" in given else 1.0
    assert rate_in_force(problem.spec, problem.optimizer, 0.25) == pytest.approx(0.25 * grown)


def test_adamw_is_its_formula() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    spec = AdamW(learning_rate=0.1, weight_decay=0.5, beta1=0.8, beta2=0.9, epsilon=1e-3)
    optimizer = build_optimizer(spec, [Group([weight], 0.1)])
    weight.grad = torch.tensor([0.5, 3.0])
    optimizer.step()
    expected = [w * (1 - 0.1 * 0.5) - 0.1 * g / (abs(g) + 1e-3) for w, g in ((1.0, 0.5), (-2.0, 3.0))]
    assert weight.tolist() == pytest.approx(expected, rel=1e-5)


def test_adafactor_steps_by_the_rate_or_relative_to_the_weight() -> None:
    """A first update has a root mean square of 1: it moves by the rate, or by the rate times the weight's size."""
    for relative, moved in ((False, 0.01), (True, 0.01 * 3)):
        weight = torch.nn.Parameter(torch.full((4, 4), 3.0))
        spec = spec_of({"type": "Adafactor", "learningRate": 0.01, "weightDecay": 0, "relativeStep": relative})
        optimizer = build_optimizer(spec, [Group([weight], 0.01)])
        weight.grad = torch.ones(4, 4)
        optimizer.step()
        assert weight.flatten().tolist() == pytest.approx([3 - moved] * 16, rel=1e-5)


def test_prodigys_coefficient_multiplies_its_step_size() -> None:
    sizes = []
    for coefficient in (1.0, 3.0):
        problem = Problem({"type": "Prodigy", "dCoefficient": coefficient})
        for _ in range(2):
            problem.step()
        sizes.append(problem.optimizer.param_groups[0]["d"])
    assert sizes[1] == pytest.approx(3 * sizes[0], rel=1e-3)


def test_a_growth_rate_holds_the_step_size_back() -> None:
    problem = Problem({"type": "DAdaptAdam", "growthRate": 1.5})
    for _ in range(4):
        problem.step()
    assert problem.optimizer.param_groups[0]["d"] <= 1e-6 * 1.5**4 * (1 + 1e-9)


def test_schedule_free_hands_over_the_mean_and_trains_on_exactly_where_it_was() -> None:
    straight, watched = Problem({"type": "ScheduleFreeAdamW"}), Problem({"type": "ScheduleFreeAdamW"})
    for _ in range(6):
        straight.step()
        watched.step()
        trained = watched.values()
        with evaluation_weights(watched.optimizer):
            shown = watched.values()
        assert equal(watched.values(), trained)
    assert not equal(shown, trained)
    # x = y + (1 - 1/beta1) (z - y), Defazio et al. 2024 (arXiv 2405.15682), equation 3 solved for x.
    for x, y, weight in zip(shown, trained, (watched.down, watched.up), strict=True):
        z = watched.optimizer.state[weight]["z"]
        torch.testing.assert_close(x, y + (1 - 1 / 0.9) * (z - y))
    assert equal(watched.values(), straight.values())
    assert watched.losses == straight.losses


def test_weights_come_back_when_handing_over_fails() -> None:
    problem = Problem({"type": "ScheduleFreeAdamW"})
    problem.step()
    problem.step()
    trained = problem.values()
    with pytest.raises(KeyboardInterrupt), evaluation_weights(problem.optimizer):
        raise KeyboardInterrupt
    assert equal(problem.values(), trained)
    problem.step()


def test_others_hand_over_what_they_train() -> None:
    problem = Problem({"type": "AdamW"})
    problem.step()
    with evaluation_weights(problem.optimizer):
        assert problem.down.data_ptr() == problem.weights["down"].data_ptr()


def test_the_text_encoder_learns_at_half_the_rate_unless_told_or_one_step_size_is_learnt() -> None:
    assert text_encoder_learning_rate(LoraAdamW(learning_rate=4e-4)) == 2e-4
    assert text_encoder_learning_rate(LoraAdamW(text_encoder_learning_rate=0)) == 0
    assert text_encoder_learning_rate(LoraScheduleFreeAdamW(text_encoder_learning_rate=3e-5)) == 3e-5
    assert text_encoder_learning_rate(LoraProdigy()) == 1.0
    assert text_encoder_learning_rate(ModelAdamW()) == 0
    assert text_encoder_learning_rate(ModelAdamW(text_encoder_learning_rate=1e-6)) == 1e-6
    assert text_encoder_learning_rate(EmbeddingAdamW()) == 0


def test_training_starts_without_bitsandbytes_until_it_is_asked_for() -> None:
    code = """
import sys
from darkroom_trainer.process import load_training
from darkroom_trainer.stopping import StopSignal
load_training(StopSignal())
import torch
from peft import LoraConfig, inject_adapter_in_model
model = torch.nn.Sequential(torch.nn.Linear(4, 4))
inject_adapter_in_model(LoraConfig(target_modules=["0"]), model)
assert not [name for name in sys.modules if name.startswith(("bitsandbytes.", "pytorch_optimizer"))]
from darkroom_api.optimizers import AdamW8bit
from darkroom_trainer.optimizers import Group, build_optimizer
print(type(build_optimizer(AdamW8bit(), [Group([torch.nn.Parameter(torch.zeros(2))], 1e-4)])).__module__)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=540, capture_output=True)
    assert done.stdout.decode().startswith("bitsandbytes.")
