"""Make the CustomResourceDefinition of a kind: schema, defaults, immutability, columns."""

from __future__ import annotations

from typing import Any

from darkroom_api.kinds import Kind
from darkroom_api.names import GROUP, MAXIMUM_NAME_LENGTH, VERSION
from darkroom_api.structural import Schema, structural_schema

UNRECONCILED: dict[str, Any] = {"observedGeneration": -1}
"""Status that the server gives a new object. Without it kstatus takes an object nobody has looked at for finished."""


def custom_resource_definition(kind: Kind) -> Schema:
    """Return the CustomResourceDefinition of a kind."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "darkroom"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short],
                "categories": ["darkroom"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(kind.columns),
                    "schema": {"openAPIV3Schema": _object_schema(kind)},
                }
            ],
        },
    }


def _object_schema(kind: Kind) -> Schema:
    spec = _documented(structural_schema(kind.spec))
    spec.setdefault("x-kubernetes-validations", []).extend(_immutability_rules(kind, spec))
    status = structural_schema(kind.status) | {"default": UNRECONCILED}
    return {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": _without_defaults(status),
        },
        "x-kubernetes-validations": [
            {
                "rule": f"size(self.metadata.name) <= {MAXIMUM_NAME_LENGTH}",
                "message": f"metadata.name: at most {MAXIMUM_NAME_LENGTH} characters: the Job's name must fit too",
            }
        ],
    }


def _immutability_rules(kind: Kind, spec: Schema) -> list[Schema]:
    """Return one rule per field that may not change.

    The rules stand on the parent, since a rule on an optional field does not run when the field comes or goes, and they
    guard against absence, since ``self.x == oldSelf.x`` fails on every later write, a status patch included.
    """
    rules = []
    for name in spec["properties"]:
        if name in kind.mutable_fields:
            continue
        rule = f"self.{name} == oldSelf.{name}"
        if name not in spec.get("required", []):
            rule = f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {rule})"
        rules.append(
            {
                "rule": rule,
                "message": f"{name} may not change; apply the resource under a new name",
                "fieldPath": f".{name}",
            }
        )
    return rules


def _documented(node: Schema) -> Schema:
    """Add each default to its description: ``kubectl explain`` is the manual."""
    node = dict(node)
    if "properties" in node:
        node["properties"] = {name: _documented(child) for name, child in node["properties"].items()}
    if "items" in node:
        node["items"] = _documented(node["items"])
    default = node.get("default")
    if "default" in node and default not in ({}, []) and "description" in node and default != "":
        shown = str(default).lower() if isinstance(default, bool) else default
        node["description"] = f"{node['description']} Default: {shown}."
    return node


def _without_defaults(status: Schema, *, top: bool = True) -> Schema:
    """Drop the defaults inside a status: only the operator writes there, and it writes all it knows."""
    lowered = {key: value for key, value in status.items() if top or key != "default"}
    if "properties" in lowered:
        lowered["properties"] = {
            name: _without_defaults(child, top=False) for name, child in lowered["properties"].items()
        }
    if "items" in lowered:
        lowered["items"] = _without_defaults(lowered["items"], top=False)
    return lowered
