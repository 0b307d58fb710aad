"""Lower a pydantic model to a Kubernetes structural schema.

Pydantic speaks JSON Schema. A CustomResourceDefinition wants the structural subset of OpenAPI 3.0: no ``$ref``, no null
type, no ``oneOf`` with properties of its own, exclusive bounds as booleans. A discriminated union becomes one object
with every member's fields and CEL rules that say which field goes with which type; a member's own rules hold for its
type alone.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import BaseModel

Schema = dict[str, Any]

DEFAULT_TYPE: Final = "x-darkroom-default-type"
"""Set on a union's field: the type that is meant when none is given."""

_KEPT: Final = frozenset(
    {"type", "description", "enum", "default", "pattern", "format", "multipleOf"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    | {"minLength", "maxLength", "minItems", "maxItems", "maxProperties"}
    | {"x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"}
)


_TAG_DESCRIPTION: Final = "Which of the choices."


def structural_schema(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model.

    Raises:
        ValueError: The model holds what no structural schema can say, such as a union without a discriminator.
    """
    schema = model.model_json_schema(by_alias=True)
    return _lower(schema, schema.get("$defs", {}))


def _lower(node: Schema, defs: dict[str, Schema]) -> Schema:
    node = _resolve(node, defs)
    if "oneOf" in node:
        return _lower_union(node, defs)
    if {branch.get("type") for branch in node.get("anyOf", [])} == {"integer", "string"}:
        return {"x-kubernetes-int-or-string": True, **_described(node)}
    lowered = {key: value for key, value in node.items() if key in _KEPT}
    if lowered.get("default", 0) is None:
        del lowered["default"]
    if "const" in node:
        lowered = {"description": _TAG_DESCRIPTION, **lowered, "enum": [node["const"]]}
    for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if flag in lowered:
            lowered[bound], lowered[flag] = lowered[flag], True
    lowered |= _children(node, defs)
    return lowered


def _described(node: Schema) -> Schema:
    return {key: node[key] for key in ("description",) if key in node}


def _resolve(node: Schema, defs: dict[str, Schema]) -> Schema:
    """Replace a reference or an optional by what it means; what stands beside it wins."""
    if "$ref" in node:
        target = defs[node["$ref"].rsplit("/", 1)[1]]
        return _resolve({**target, **{key: value for key, value in node.items() if key != "$ref"}}, defs)
    branches = [branch for branch in node.get("anyOf", []) if branch.get("type") != "null"]
    if not branches or {branch.get("type") for branch in branches} == {"integer", "string"}:
        return node
    if len(branches) > 1:
        raise ValueError(f"a union without a discriminator has no structural schema: {node}")
    outer = {key: value for key, value in node.items() if key != "anyOf"}
    return _resolve({**branches[0], **outer, "x-darkroom-optional": True}, defs)


def _children(node: Schema, defs: dict[str, Schema]) -> Schema:
    lowered: Schema = {}
    if "properties" in node:
        required = node.get("required", [])
        lowered["properties"] = {
            name: _with_default(child, _lower(child, defs), required=name in required, defs=defs)
            for name, child in node["properties"].items()
        }
        if required:
            lowered["required"] = required
    if "items" in node:
        lowered["items"] = _lower(node["items"], defs)
    if isinstance(node.get("additionalProperties"), dict):
        lowered["additionalProperties"] = _lower(node["additionalProperties"], defs)
    return lowered


def _with_default(node: Schema, lowered: Schema, *, required: bool, defs: dict[str, Schema]) -> Schema:
    """Give an object that may be left out the default ``{}``, so that the server fills in its fields' own defaults."""
    optional = _resolve(node, defs).get("x-darkroom-optional", False)
    if "properties" in lowered and not required and not optional and not lowered.get("required"):
        return {**lowered, "default": {}}
    return lowered


def _lower_union(node: Schema, defs: dict[str, Schema]) -> Schema:
    tag = node["discriminator"]["propertyName"]
    members = {kind: _lower({"$ref": ref}, defs) for kind, ref in node["discriminator"]["mapping"].items()}
    fields: dict[str, dict[str, Schema]] = {}
    for kind, member in members.items():
        for name, child in member["properties"].items():
            if name != tag:
                fields.setdefault(name, {})[kind] = child
    properties = {
        name: _merge_field(name, by_kind, everywhere=len(by_kind) == len(members)) for name, by_kind in fields.items()
    }
    owners = {name: list(by_kind) for name, by_kind in fields.items()}
    tag_schema: Schema = {"type": "string", "enum": list(members), "description": _TAG_DESCRIPTION}
    if DEFAULT_TYPE in node:
        tag_schema["default"] = node[DEFAULT_TYPE]
    lowered: Schema = {"type": "object", **_described(node), "properties": {tag: tag_schema, **properties}}
    if DEFAULT_TYPE not in node:
        lowered["required"] = [tag]
    if rules := _union_rules(tag, members, owners=owners):
        lowered["x-kubernetes-validations"] = rules
    return lowered


def _merge_field(name: str, by_kind: dict[str, Schema], *, everywhere: bool) -> Schema:
    """Return the field that all these members mean; they may differ in its default."""
    bare, *others = ({key: value for key, value in child.items() if key != "default"} for child in by_kind.values())
    if any(other != bare for other in others):
        raise ValueError(f"field {name!r} means different things in two members of one union")
    defaults = {kind: child["default"] for kind, child in by_kind.items() if "default" in child}
    if not defaults or "properties" in bare:
        return bare
    told = _told_defaults(defaults)
    if everywhere and len(told) == 1 and len(defaults) == len(by_kind):
        return {**bare, "default": next(iter(defaults.values()))}
    # A default would put the field into objects of the other types. The models fill it in after reading.
    described = "description" in bare
    return {**bare, "description": f"{bare['description']} Default: {'; '.join(told)}."} if described else bare


def _told_defaults(defaults: dict[str, Any]) -> list[str]:
    """Return each default, the commonest first and alone, the others with the kinds that have them."""
    kinds: dict[str, list[str]] = {}
    for kind, default in defaults.items():
        kinds.setdefault(default if isinstance(default, str) else json.dumps(default), []).append(kind)
    first, *rest = sorted(kinds, key=lambda default: -len(kinds[default]))
    return [first, *(f"{default} for {' and '.join(kinds[default])}" for default in rest)]


def _union_rules(tag: str, members: dict[str, Schema], *, owners: dict[str, list[str]]) -> list[Schema]:
    rules = [
        {
            "rule": f"!has(self.{name}) || self.{tag} in {of!r}",
            "message": (told := f"{name} is only for {tag} {' or '.join(of)}"),
            "messageExpression": f"'{told}; {tag} is ' + self.{tag}",
            "fieldPath": f".{name}",
        }
        for name, of in owners.items()
        if len(of) < len(members)
    ]
    rules += [
        {"rule": f"self.{tag} != {kind!r} || has(self.{name})", "message": f"{tag} {kind} needs {name}"}
        for kind, member in members.items()
        for name in member.get("required", [])
        if name != tag
    ]
    return rules + _member_rules(tag, members)


def _member_rules(tag: str, members: dict[str, Schema]) -> list[Schema]:
    """Return the members' own rules, each once and only for the types that have it."""
    kinds: dict[str, list[str]] = {}
    rules = {}
    for kind, member in members.items():
        for rule in member.get("x-kubernetes-validations", []):
            key = json.dumps(rule, sort_keys=True)
            rules[key] = rule
            kinds.setdefault(key, []).append(kind)
    return [
        {**rule, "rule": f"!has(self.{tag}) || !(self.{tag} in {kinds[key]!r}) || ({rule['rule']})"}
        for key, rule in rules.items()
    ]
