"""The generated CustomResourceDefinitions: what every kind must have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from darkroom_api.crd import custom_resource_definition
from darkroom_api.kinds import KINDS, Kind

Schema = dict[str, Any]


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from walk(schema[key], f"{path}[]")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def schema(kind: Kind) -> Schema:
    (version,) = custom_resource_definition(kind)["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def test_every_field_of_the_spec_is_described(schema: Schema) -> None:
    bare = [
        path
        for path, node in walk(schema["properties"]["spec"], "spec")
        if "description" not in node and "[]" not in path
    ]
    assert bare == []


def test_every_text_and_list_is_bounded_so_that_cel_rules_fit_their_cost_budget(schema: Schema) -> None:
    unbounded = [
        path
        for path, node in walk(schema["properties"]["spec"], "spec")
        if (node.get("type") == "string" and "maxLength" not in node and "enum" not in node and not _quantity(path))
        or (node.get("type") == "array" and "maxItems" not in node)
        or ("additionalProperties" in node and "maxProperties" not in node)
    ]
    assert unbounded == []


def _quantity(path: str) -> bool:
    return ".resources." in path


def test_every_immutable_field_has_a_rule_and_no_mutable_one_has(kind: Kind, schema: Schema) -> None:
    spec = schema["properties"]["spec"]
    ruled = {rule["fieldPath"].lstrip(".") for rule in spec["x-kubernetes-validations"] if "oldSelf" in rule["rule"]}
    assert ruled == set(spec["properties"]) - kind.mutable_fields


def test_validation_brings_nothing_into_a_spec_that_does_not_ask_for_it(schema: Schema) -> None:
    validation = schema["properties"]["spec"]["properties"]["validation"]
    with_default = {name for name, node in validation["properties"].items() if "default" in node}
    assert "default" not in validation
    assert with_default == {"everyEpochs", "draws"}


def test_the_manual_tells_the_usual_learning_rates_of_the_kind(kind: Kind, schema: Schema) -> None:
    usual = {
        "LoraTraining": "0.0001; 1.0 for DAdaptAdam and Prodigy; 0.0002 for CAME",
        "ModelTraining": "2e-06; 1.0 for DAdaptAdam and Prodigy; 4e-06 for CAME",
        "EmbeddingTraining": "0.0005; 1.0 for DAdaptAdam and Prodigy; 0.001 for CAME",
    }
    optimizer = schema["properties"]["spec"]["properties"]["training"]["properties"]["optimizer"]["properties"]
    assert f" Default: {usual[kind.name]}; " in optimizer["learningRate"]["description"]
    assert "default" not in optimizer["learningRate"]  # it would be that of one type
    text = optimizer.get("textEncoderLearningRate")
    assert (text and text.get("default")) == {"LoraTraining": None, "ModelTraining": 0.0, "EmbeddingTraining": None}[
        kind.name
    ]
    assert (text is None) == (kind.name == "EmbeddingTraining")


def test_mutable_fields_exist(kind: Kind, schema: Schema) -> None:
    assert kind.mutable_fields <= set(schema["properties"]["spec"]["properties"])


def test_new_object_counts_as_unreconciled(schema: Schema) -> None:
    assert schema["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_nothing_unknown_to_structural_schemas_is_left(schema: Schema) -> None:
    forbidden = {"$ref", "anyOf", "oneOf", "const", "title", "discriminator"}
    assert [path for path, node in walk(schema) if forbidden & set(node)] == []


def test_conditions_are_a_map_by_type(schema: Schema) -> None:
    conditions = schema["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
