"""The base of every model on the wire, and how its errors are told to a person."""

from __future__ import annotations

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
    return "\n".join(
        _line(problem["loc"], problem["msg"], given=problem.get("input"), root=root) for problem in error.errors()
    )


def _line(location: tuple[int | str, ...], message: str, *, given: object, root: str) -> str:
    path = root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    shown = "" if isinstance(given, dict) else f"{given!r}: "
    return f"{path}: {shown}{message}"
