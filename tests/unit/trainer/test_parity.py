"""No member of a union of the spec is without its implementation."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from darkroom_api.masks import Mask
from darkroom_api.networks import Network
from darkroom_api.objectives import Loss
from darkroom_api.optimizers import Optimizer
from darkroom_api.rates import EmbeddingOptimizer, LoraOptimizer, ModelOptimizer
from darkroom_api.schedules import Schedule
from darkroom_trainer.masking import SOURCES
from darkroom_trainer.metadata import LOSS_NAMES
from darkroom_trainer.networks.about import implementation
from darkroom_trainer.networks.building import build
from darkroom_trainer.objectives import count_errors
from darkroom_trainer.optimizers import build_optimizer
from darkroom_trainer.schedules import schedule_factor


def members(union: Any) -> set[type]:
    """Return the classes of a union, annotated or not, of one member or many."""
    if isinstance(union, type):
        return {union}
    inner = get_args(union)[0]
    return {inner} if isinstance(inner, type) else set(get_args(inner))


@pytest.mark.parametrize(
    ("union", "registry"),
    [
        (Optimizer, build_optimizer),
        (Schedule, schedule_factor),
        (Network, build),
        (Network, implementation),
        (Loss, count_errors),
    ],
    ids=["optimizer", "schedule", "network", "network's metadata", "loss"],
)
def test_every_member_of_a_union_is_implemented(union: Any, registry: Any) -> None:
    assert set(registry.registry) - {object} == members(union)


@pytest.mark.parametrize(
    "union", [LoraOptimizer, ModelOptimizer, EmbeddingOptimizer], ids=["lora", "model", "embedding"]
)
def test_every_kind_of_training_has_every_optimizer_with_its_builder(union: Any) -> None:
    built = {build_optimizer.dispatch(member) for member in members(union)}
    assert built == set(build_optimizer.registry.values()) - {build_optimizer.registry[object]}
    assert len(members(union)) == len(members(Optimizer))


def test_every_source_of_masks_is_implemented() -> None:
    assert set(SOURCES) == set(get_args(Mask.model_fields["source"].annotation))


def test_every_loss_has_a_name_in_a_files_metadata() -> None:
    assert {kind.__name__ for kind in members(Loss)} == set(LOSS_NAMES)
