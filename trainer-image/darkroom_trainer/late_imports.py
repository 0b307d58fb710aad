"""Keeps a package that only some runs need from being imported in all of them."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def hide(package: str) -> None:
    """Make a package look as if it were not installed, unless it is imported already.

    diffusers and peft import bitsandbytes wherever they find it, which adds a fifth to the CPU time of a run's start.
    """
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # Python's own sign for "cannot be imported"


def reveal(package: str) -> Any:
    """Import a package that may be hidden."""
    if sys.modules.get(package, package) is None:
        del sys.modules[package]
    return importlib.import_module(package)
