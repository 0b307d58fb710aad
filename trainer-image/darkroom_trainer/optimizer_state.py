"""All that an optimizer knows, as plain tensors and JSON; `state` writes it beside the weights.

Tensors are named ``INDEX.NAME`` for the weight of that index and ``group.INDEX.NAME`` for a group; numbers likewise are
those of weights and those of groups. What is left out is given anew by the spec or follows from the step: learning
rates, and whatever in a group still is as the optimizer was built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch

_GROUP: Final = "group"
_NOT_STATE: Final = ("params", "lr")


def tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the tensors that the optimizer keeps, not copied."""
    return {
        f"{owner}.{name}": value
        for owner, values in _kept(optimizer)
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def numbers(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the numbers that the optimizer keeps, by owner, and its class."""
    values = {
        owner: {name: value for name, value in values.items() if isinstance(value, int | float)}
        for owner, values in _kept(optimizer)
    }
    return {"class": type(optimizer).__name__, "numbers": {owner: it for owner, it in values.items() if it}}


def fill(optimizer: torch.optim.Optimizer, kept: Mapping[str, torch.Tensor], told: Mapping[str, Any]) -> None:
    """Give an optimizer the state that another of the same spec had.

    Raises:
        ValueError: The other one was of another class.
    """
    if told["class"] != type(optimizer).__name__:
        raise ValueError(f"it holds the state of {told['class']}, the spec asks for {type(optimizer).__name__}")
    values: dict[str, dict[str, Any]] = {owner: dict(it) for owner, it in told["numbers"].items()}
    for key, tensor in kept.items():
        owner, _, name = key.rpartition(".")
        values.setdefault(owner, {})[name] = tensor
    state = {int(owner): it for owner, it in values.items() if not owner.startswith(_GROUP)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for index, group in enumerate(optimizer.param_groups):
        _fill_group(group, values.get(f"{_GROUP}.{index}", {}), optimizer.defaults)


def _kept(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is kept for each weight and then for each group, by owner."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, weight in enumerate(weights):
        # Not by way of state_dict: bitsandbytes' one nests its tensors, for sharded models.
        yield str(index), optimizer.state.get(weight, {})
    for index, group in enumerate(optimizer.param_groups):
        yield f"{_GROUP}.{index}", {name: it for name, it in group.items() if not _is_as_built(name, it, optimizer)}


def _is_as_built(name: str, value: object, optimizer: torch.optim.Optimizer) -> bool:
    if name in _NOT_STATE:
        return True
    missing = object()
    built = optimizer.defaults.get(name, missing)
    return not isinstance(value, torch.Tensor) and built is not missing and bool(built == value)


def _fill_group(group: dict[str, Any], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for name in [name for name in group if name not in (*_NOT_STATE, *defaults)]:
        del group[name]  # came with a step that the state may not have seen
    group.update({name: value for name, value in defaults.items() if name not in _NOT_STATE})
    device = group["params"][0].device
    group.update({name: it.to(device) if isinstance(it, torch.Tensor) else it for name, it in values.items()})
