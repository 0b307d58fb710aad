"""The base of every model on the wire, and how its errors are told to a person."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A frozen, strict model with camelCase names on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=False
    )


def explain(error: ValidationError, root: str) -> str:
    """Tell every problem of a validation error at once: path, what was given and what is allowed.

    Args:
        error: What pydantic raised.
        root: The path that the model stands at, such as ``spec``.
    """
    return "\n".join(_told(dict(problem), root) for problem in error.errors())


def _told(problem: dict[str, Any], root: str) -> str:
    location, context = problem["loc"], problem.get("ctx", {})
    if problem["type"] == "union_tag_invalid":  # pydantic tells the union, not the field that chooses of it
        choice = (*location, context["discriminator"].strip("'"))
        return _line(choice, f"allowed are {context['expected_tags']}", given=context["tag"], root=root)
    return _line(location, problem["msg"], given=problem.get("input"), root=root)


def _line(location: tuple[int | str, ...], message: str, *, given: object, root: str) -> str:
    path = root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    shown = "" if isinstance(given, dict) else f"{given!r}: "
    return f"{path}: {shown}{message}"
