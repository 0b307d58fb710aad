"""The operator stays light: what it must not need, it does not load."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = ("torch", "diffusers", "transformers", "boto3", "darkroom_trainer", "darkroom_cli")


def test_the_operator_loads_no_framework_and_no_other_part() -> None:
    code = f"import sys, darkroom_operator.running; print([name for name in {FORBIDDEN} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"


def test_decisions_do_no_input_or_output() -> None:
    modules = ("kopf", "kubernetes", "aiohttp", "asyncio")
    code = f"import sys, darkroom_operator.decide.training; print([name for name in {modules} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
