"""Render the chart with the real helm, as a user's helm would."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml

from dev.cluster import binaries
from dev.cluster.paths import REPOSITORY

CHART = REPOSITORY / "charts" / "darkroom"
IMAGES = {"operator.image": "registry.test/operator:1", "trainer.image": "registry.test/trainer:1"}

Objects = dict[tuple[str, str], dict[str, Any]]
Render = Callable[[Mapping[str, Any]], Objects]
RunHelm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_helm() -> RunHelm:
    """Run helm with arguments and return what came of it."""
    binaries.ensure_helm()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(binaries.helm()), *arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def render(run_helm: RunHelm) -> Render:
    """Return the rendered objects by kind and name for values by dotted path."""

    def rendered(values: Mapping[str, Any]) -> Objects:
        result = run_helm("template", "darkroom", str(CHART), "--namespace", "darkroom-system", *as_flags(values))
        assert result.returncode == 0, result.stderr
        objects = [item for item in yaml.safe_load_all(result.stdout) if item]
        return {
            (item["kind"], "/".join(filter(None, (item["metadata"].get("namespace"), item["metadata"]["name"])))): item
            for item in objects
        }

    return rendered


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return helm's flags for values by dotted path, the two required images included."""
    return [
        part for path, value in {**IMAGES, **values}.items() for part in ("--set-json", f"{path}={json.dumps(value)}")
    ]
