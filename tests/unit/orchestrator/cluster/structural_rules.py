"""The published rules of structural schemas, as a checker of its own: independent of the generator.

kubernetes.io, "Extend the Kubernetes API with CustomResourceDefinitions": Specifying a structural schema; and the
fields of JSONSchemaProps in apiextensions.k8s.io/v1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KNOWN = {
    "description", "type", "format", "default", "enum", "nullable", "properties", "required", "additionalProperties",
    "items", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
    "pattern", "minItems", "maxItems", "minProperties", "maxProperties", "anyOf",
    "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-validations",
}  # fmt: skip
TYPES = {"object", "array", "string", "integer", "number", "boolean"}
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
MAY_BE_UNKNOWN = {"podTemplate"}


def problems(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Each breach in words, with its path."""
    unknown = set(schema) - KNOWN
    if unknown:
        yield f"{path}: not in JSONSchemaProps: {sorted(unknown)}"
    if schema.get("x-kubernetes-int-or-string"):
        if "type" in schema or schema.get("anyOf") != INT_OR_STRING:
            yield f"{path}: int-or-string has anyOf integer, string and no type"
        return
    if schema.get("type") not in TYPES:
        yield f"{path}: no type"
    if "anyOf" in schema:
        yield f"{path}: anyOf only for int-or-string"
    yield from _values(schema, path)
    yield from _bounds(schema, path)
    yield from _shape(schema, path)


def _values(schema: dict[str, Any], path: str) -> Iterator[str]:
    for word in ("exclusiveMinimum", "exclusiveMaximum", "nullable"):
        if word in schema and not isinstance(schema[word], bool):
            yield f"{path}: {word} is a boolean in OpenAPI v3.0"
    if schema.get("exclusiveMinimum") and "minimum" not in schema:
        yield f"{path}: exclusiveMinimum without minimum"
    if "default" in schema and schema["default"] is None:
        yield f"{path}: default null"
    for rule in schema.get("x-kubernetes-validations", ()):
        if not rule.get("rule", "").strip() or not rule.get("message", "").strip() or "\n" in rule["message"]:
            yield f"{path}: a rule needs a message of one line"


def _bounds(schema: dict[str, Any], path: str) -> Iterator[str]:
    kind = schema.get("type")
    open_string = kind == "string" and not ({"enum", "format"} & set(schema))
    # What every object has is bounded by the API server itself.
    if open_string and "maxLength" not in schema and path not in (".apiVersion", ".kind"):
        yield f"{path}: a string without maxLength"
    if kind == "array" and "maxItems" not in schema:
        yield f"{path}: a list without maxItems"
    if "additionalProperties" in schema and "maxProperties" not in schema:
        yield f"{path}: a map without maxProperties"


def _shape(schema: dict[str, Any], path: str) -> Iterator[str]:
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{path}: properties and additionalProperties exclude each other"
    name = path.rpartition(".")[2]
    if schema.get("x-kubernetes-preserve-unknown-fields") and name not in MAY_BE_UNKNOWN:
        yield f"{path}: only an overlay may have unknown fields"
    if set(schema.get("required", ())) - set(schema.get("properties", {})):
        yield f"{path}: requires what it has not"
    if schema.get("type") == "array" and "items" not in schema:
        yield f"{path}: a list without items"
    keys = schema.get("x-kubernetes-list-map-keys", ())
    items = schema.get("items", {})
    for key in keys:
        if key not in items.get("required", ()) and "default" not in items["properties"][key]:
            yield f"{path}: the key {key} of a map list is required or has a default"
    for name, below in schema.get("properties", {}).items():
        yield from problems(below, f"{path}.{name}")
    if "items" in schema:
        yield from problems(items, f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from problems(schema["additionalProperties"], f"{path}.*")


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below, itself included, with its path."""
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}{mark}")
