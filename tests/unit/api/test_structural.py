"""Lowering of pydantic models to structural schemas, by small models of each shape."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import ConfigDict, Field

from darkroom_api.base import Model
from darkroom_api.structural import structural_schema


class Inner(Model):
    size: int = Field(default=3, gt=0, lt=10, description="Size.")


class Circle(Model):
    type: Literal["Circle"] = "Circle"
    radius: float = Field(default=1.0, ge=0)
    colour: str = Field(default="red")


class Square(Model):
    type: Literal["Square"] = "Square"
    side: float = Field(ge=0)
    colour: str = Field(default="red")


class Outer(Model):
    name: str | None = Field(default=None, max_length=5)
    inner: Inner = Field(default_factory=Inner)
    amounts: dict[str, int | str] = Field(default_factory=dict)
    shape: Annotated[
        Circle | Square, Field(discriminator="type", json_schema_extra={"x-darkroom-default-type": "Circle"})
    ] = Field(default_factory=Circle)
    strict: Annotated[Circle | Square, Field(discriminator="type")]


SCHEMA = structural_schema(Outer)["properties"]


def test_optional_becomes_its_type_without_a_default() -> None:
    assert SCHEMA["name"] == {"type": "string", "maxLength": 5}


def test_exclusive_bounds_are_booleans() -> None:
    size = SCHEMA["inner"]["properties"]["size"]
    assert (size["minimum"], size["exclusiveMinimum"]) == (0, True)
    assert (size["maximum"], size["exclusiveMaximum"]) == (10, True)


def test_object_that_may_be_left_out_defaults_to_empty_so_that_its_fields_default() -> None:
    assert SCHEMA["inner"]["default"] == {}
    assert SCHEMA["inner"]["properties"]["size"]["default"] == 3


def test_quantities_are_int_or_string() -> None:
    assert SCHEMA["amounts"]["additionalProperties"] == {"x-kubernetes-int-or-string": True}


def test_union_merges_its_members_and_says_which_field_goes_with_which_type() -> None:
    shape = SCHEMA["shape"]
    assert shape["properties"]["type"]["enum"] == ["Circle", "Square"]
    assert shape["properties"]["type"]["default"] == "Circle"
    assert [rule["message"] for rule in shape["x-kubernetes-validations"]] == [
        "radius is only for type Circle",
        "side is only for type Square",
        "type Square needs side",
    ]


def test_union_keeps_a_default_only_where_every_member_shares_the_field() -> None:
    properties = SCHEMA["shape"]["properties"]
    assert properties["colour"]["default"] == "red"
    assert "default" not in properties["radius"]


def test_union_without_a_usual_choice_requires_its_type() -> None:
    assert SCHEMA["strict"]["required"] == ["type"]
    assert "default" not in SCHEMA["strict"]["properties"]["type"]


def test_one_field_name_with_two_meanings_is_refused() -> None:
    class Other(Model):
        type: Literal["Other"] = "Other"
        radius: str = "large"

    class Clash(Model):
        shape: Annotated[Circle | Other, Field(discriminator="type")]

    with pytest.raises(ValueError, match="'radius' means different things"):
        structural_schema(Clash)


class Cat(Model):
    model_config = ConfigDict(
        json_schema_extra={"x-kubernetes-validations": [{"rule": "self.lives > 0", "message": "a cat lives"}]}
    )
    type: Literal["Cat"] = "Cat"
    lives: int = Field(default=9, description="How often.")
    sound: str = Field(default="meow", description="What it says.")
    legs: int = Field(default=4, description="Legs.")


class Lynx(Cat):
    type: Literal["Lynx"] = "Lynx"
    lives: int = Field(default=1, description="How often.")


class Crow(Model):
    type: Literal["Crow"] = "Crow"
    lives: int = Field(default=1, description="How often.")
    sound: str = Field(default="caw", description="What it says.")


class Zoo(Model):
    animal: Annotated[Cat | Lynx | Crow, Field(discriminator="type")]


ANIMAL = structural_schema(Zoo)["properties"]["animal"]


def test_members_may_differ_in_a_default_which_is_then_told_and_not_set() -> None:
    told = {name: field["description"] for name, field in ANIMAL["properties"].items()}
    assert told["lives"] == "How often. Default: 1; 9 for Cat."
    assert told["sound"] == "What it says. Default: meow; caw for Crow."
    assert told["legs"] == "Legs. Default: 4."
    assert [name for name, field in ANIMAL["properties"].items() if "default" in field] == []


def test_a_members_rules_hold_for_its_type_alone() -> None:
    rules = [rule for rule in ANIMAL["x-kubernetes-validations"] if rule["message"] == "a cat lives"]
    assert [rule["rule"] for rule in rules] == [
        "!has(self.type) || !(self.type in ['Cat', 'Lynx']) || (self.lives > 0)"
    ]


def test_union_without_discriminator_is_refused() -> None:
    class Loose(Model):
        shape: Circle | Square

    with pytest.raises(ValueError, match="without a discriminator"):
        structural_schema(Loose)
