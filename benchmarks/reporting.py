"""How programs here print a figure: `name: figure unit`, with the goal beside it where there is one."""

from __future__ import annotations


def report(name: str, figure: float, unit: str, *, goal: str = "") -> None:
    """Print one line."""
    print(f"{name}: {figure:.3g} {unit}{f'   (goal {goal})' if goal else ''}", flush=True)


def percent(name: str, share: float, *, goal: str = "") -> None:
    """Print a share as a percentage."""
    print(f"{name}: {100 * share:.1f} %{f'   (goal {goal})' if goal else ''}", flush=True)
