"""Reads a spec as an operator must: a newer CRD may have stored fields that this release does not know.

The API server and the pod stay strict. An operator that refused such a field would take every healthy run for wrong
as soon as the CRDs are upgraded before it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
_ROUNDS = 8
"""Each round brings out what the one before hid: fields are looked at before what spans them."""


def read_known(model: type[M], raw: Mapping[str, Any]) -> M:
    """Validate without the fields that the model does not know.

    Raises:
        ValidationError: Something that it does know is wrong.
    """
    value: Any = copy.deepcopy(dict(raw))
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(value)
        except ValidationError as error:
            unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
            if not unknown:
                raise
        for location in unknown:
            _drop(value, location)
    return model.model_validate(value)


def _drop(value: Any, location: tuple[int | str, ...]) -> None:
    """Remove what stands at a location; its parts that name no key are the tags of unions."""
    for part in location[:-1]:
        is_there = part in value if isinstance(value, dict) else isinstance(part, int)
        value = value[part] if is_there else value
    if isinstance(value, dict):
        value.pop(location[-1], None)
