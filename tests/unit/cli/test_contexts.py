"""Which namespace a resource is looked for in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from darkroom_cli.errors import UserError
from darkroom_cli.resources import ClusterReader, parse_reference

CONFIGURATION: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "home",
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [
        {"name": "home", "context": {"cluster": "c", "user": "u", "namespace": "homes"}},
        {"name": "work", "context": {"cluster": "c", "user": "u", "namespace": "works"}},
        {"name": "bare", "context": {"cluster": "c", "user": "u"}},
    ],
}


def reader(
    folder: Path, configuration: dict[str, Any], *, context: str | None, namespace: str | None = None
) -> ClusterReader:
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(configuration))
    return ClusterReader(parse_reference("lora/anna"), namespace=namespace, kubeconfig=path, context=context)


@pytest.mark.parametrize(
    ("context", "namespace", "expected"),
    [
        (None, None, "homes"),
        ("work", None, "works"),
        ("bare", None, "default"),
        ("work", "given", "given"),
    ],
)
def test_the_named_contexts_namespace_is_taken(
    tmp_path: Path, context: str | None, namespace: str | None, expected: str
) -> None:
    assert reader(tmp_path, CONFIGURATION, context=context, namespace=namespace).namespace == expected


def test_a_named_context_needs_no_current_one(tmp_path: Path) -> None:
    without = {key: value for key, value in CONFIGURATION.items() if key != "current-context"}
    assert reader(tmp_path, without, context="work").namespace == "works"
    with pytest.raises(UserError, match="give --kubeconfig FILE"):
        reader(tmp_path, without, context=None)


def test_a_context_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        reader(tmp_path, CONFIGURATION, context="nowhere")
