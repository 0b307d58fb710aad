"""The conventions of the repository that no linter holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for folder in ("api", "operator", "trainer-image", "cli", "dev", "examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
TRAINING_LOOP = "trainer-image/darkroom_trainer/train.py"


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_files_stay_small() -> None:
    large = {relative(path): lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 400}
    assert large == {}


def test_functions_stay_short() -> None:
    long = {
        f"{relative(path)}:{name}": lines
        for path in SOURCES
        for name, lines in functions(path)
        if lines > (80 if relative(path) == TRAINING_LOOP else 60)
    }
    assert long == {}


def test_every_module_says_why_it_exists() -> None:
    silent = [
        relative(path)
        for path in SOURCES
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize("module", ["darkroom_operator.__main__", "darkroom_cli.__main__", "darkroom_trainer.process"])
def test_import_brings_no_torch(module: str) -> None:
    """Operator and command line stay light; the trainer tells bad credentials before it loads anything heavy."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_no_binary_is_tracked_but_the_small_base_model() -> None:
    """One binary is allowed: the small base model."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    binaries = [
        name.decode()
        for name in tracked
        if name and (ROOT / name.decode()).is_file() and b"\0" in _head(ROOT / name.decode())
    ]
    assert [name for name in binaries if not name.endswith(".png")] in (
        [],
        ["examples/base-model/tiny-sd15.safetensors"],
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8192)
