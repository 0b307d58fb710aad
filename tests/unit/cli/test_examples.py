"""The examples are specs that the API takes: they are applied as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from darkroom_api.kinds import KINDS
from darkroom_api.names import API_VERSION
from dev.cluster.paths import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_valid_resource(path: Path) -> None:
    specs = {kind.name: kind.spec for kind in KINDS}
    for document in yaml.safe_load_all(path.read_text()):
        assert document["apiVersion"] == API_VERSION
        specs[document["kind"]].model_validate(document["spec"])


def test_there_are_examples() -> None:
    assert EXAMPLES
