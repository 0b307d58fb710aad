"""Bounds on what pods say: a number that the API server cannot hold would make every status write fail for ever."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

LARGEST_INTEGER: Final = 2**53
"""Integers above lose digits in JSON parsers; int64 ends at 2**63."""


def is_sane(model: BaseModel) -> bool:
    """Tell whether all numbers of a model fit into a status."""
    return _fits(model.model_dump())


def _fits(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_fits(entry) for entry in value.values())
    if isinstance(value, list):
        return all(_fits(entry) for entry in value)
    return not isinstance(value, int) or abs(value) <= LARGEST_INTEGER
