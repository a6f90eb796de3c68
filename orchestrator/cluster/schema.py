"""From a pydantic model to a structural schema, as Kubernetes asks of a CRD. Knows no kind of ours.

    JSON Schema 2020-12 (pydantic)          OpenAPI v3.0, structural (Kubernetes)
    $ref, $defs                        ──▶  written out
    anyOf [X, null], default null      ──▶  X, not required
    exclusiveMinimum: 0                ──▶  minimum: 1 (integer), exclusiveMinimum: true (number)
    const, prefixItems                 ──▶  enum, items with the number of them fixed
    oneOf models told apart by a kind  ──▶  one object with the properties of all, and a rule for each
    default {every field …}            ──▶  {} where the fields' own defaults say the same
    no bound on a string, list, map    ──▶  a bound, so that the cost of CEL rules can be estimated

Rules: kubernetes.io, "Extend the Kubernetes API with CustomResourceDefinitions", structural schemas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

Schema = dict[str, Any]

MOST_CHARACTERS = 1024
MOST_ITEMS = 64
MOST_PROPERTIES = 64
_FORMATS = frozenset({"date-time", "date", "duration", "int32", "int64", "float", "double", "byte"})
_KEPT = (
    "minimum",
    "maximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
)
_RULES = "x-kubernetes-validations"


def structural_schema(model: type[BaseModel]) -> Schema:
    """The model's schema as a CRD may have it. Raises TypeError for what cannot be said there."""
    whole = model.model_json_schema(by_alias=True, mode="validation")
    return _Converter(whole.get("$defs", {})).convert(whole, model.__name__)


def with_defaults(schema: Mapping[str, Any], value: Any) -> Any:
    """The value as the API server stores it: every default filled in, level by level."""
    if isinstance(value, dict):
        properties: Mapping[str, Any] = schema.get("properties", {})
        filled = dict(value)
        for name, below in properties.items():
            if name not in filled and "default" in below:
                filled[name] = below["default"]
        more = schema.get("additionalProperties", {})
        return {name: with_defaults(properties.get(name, more), item) for name, item in filled.items()}
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    return value


class _Converter:
    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def convert(self, node: Mapping[str, Any], path: str) -> Schema:
        """The node, references written out. `path` names it in errors."""
        node = self._resolved(node)
        if "x-kubernetes-int-or-string" in node:
            return _ordered({"anyOf": node["anyOf"], **_kept(node), **_words(node)})
        alternatives = node.get("oneOf") or node.get("anyOf")
        if alternatives is not None:
            given = [part for part in alternatives if part.get("type") != "null"]
            if len(given) != 1:
                return self._union(node, given, path)
            around = {key: value for key, value in node.items() if key not in ("anyOf", "oneOf")}
            return self.convert(_overlaid(self._resolved(given[0]), around), path)
        return _ordered(self._plain(node, path))

    def _resolved(self, node: Mapping[str, Any]) -> Schema:
        """The node with what its $ref (or a single allOf) points to below its own words."""
        while True:
            around = {key: value for key, value in node.items() if key not in ("$ref", "allOf")}
            if "$ref" in node:
                node = _overlaid(self._definitions[node["$ref"].rpartition("/")[2]], around)
            elif len(node.get("allOf", ())) == 1:
                node = _overlaid(node["allOf"][0], around)
            else:
                return dict(node)

    def _plain(self, node: Schema, path: str) -> Schema:
        if "const" in node:
            node = node | {"enum": [node["const"]]}
        kind = node.get("type") or _type_of_enum(node, path)
        schema = {"type": kind, **_kept(node), **_words(node)}
        if node.get("format") in _FORMATS:
            schema["format"] = node["format"]
        if "enum" in node:
            schema["enum"] = list(node["enum"])
        shape = {"object": self._object, "array": self._array, "string": _string}.get(kind, _number)
        schema |= shape(node, path)
        return _with_default(schema, node)

    def _object(self, node: Schema, path: str) -> Schema:
        if node.get("x-kubernetes-preserve-unknown-fields"):
            return {}
        if "properties" in node:
            properties = {
                name: self.convert(below, f"{path}.{name}") for name, below in node["properties"].items()
            }
            required = {"required": list(node["required"])} if node.get("required") else {}
            return {"properties": properties, **required}
        values = node.get("additionalProperties")
        if not isinstance(values, Mapping):
            if path.endswith(".metadata") or not node.get("additionalProperties"):
                return {}
            raise TypeError(f"{path}: a map needs a type for its values")
        return {
            "additionalProperties": self.convert(values, f"{path}.*"),
            "maxProperties": node.get("maxProperties", MOST_PROPERTIES),
        }

    def _array(self, node: Schema, path: str) -> Schema:
        if "prefixItems" in node:
            items = [self.convert(item, f"{path}.{place}") for place, item in enumerate(node["prefixItems"])]
            if any(item != items[0] for item in items):
                raise TypeError(f"{path}: the items of a tuple must be alike")
            return {"items": items[0], "minItems": len(items), "maxItems": len(items)}
        return {
            "items": self.convert(node["items"], f"{path}.*"),
            "maxItems": node.get("maxItems", MOST_ITEMS),
        }

    def _union(self, node: Schema, alternatives: Sequence[Mapping[str, Any]], path: str) -> Schema:
        variants = [self.convert(part, path) for part in alternatives]
        merged = _merged(variants, path)
        outer = node | {_RULES: [*merged.pop(_RULES, []), *node.get(_RULES, [])]}
        if not outer[_RULES]:
            del outer[_RULES]
        schema = merged | _kept(outer) | _words(node)
        default = node.get("default")
        tag = merged["x-tag"]
        del schema["x-tag"]
        if isinstance(default, Mapping) and default.get(tag) is not None:
            chosen = merged["properties"][tag] | {"default": default[tag]}
            schema["properties"] = merged["properties"] | {tag: chosen}
            schema["default"] = {}
            schema.pop("required", None)
        return _ordered(schema)


def _merged(variants: Sequence[Schema], path: str) -> Schema:
    """One object for models that differ by a property with one value each."""
    if any(variant.get("type") != "object" for variant in variants):
        raise TypeError(f"{path}: only models can be alternatives of each other")
    tag = _tag(variants, path)
    names = list(dict.fromkeys(name for variant in variants for name in variant["properties"]))
    properties: Schema = {}
    told: list[Schema] = []
    for name in names:
        having = [variant for variant in variants if name in variant["properties"]]
        properties[name] = _common([variant["properties"][name] for variant in having], f"{path}.{name}")
        if len(having) < len(variants):
            properties[name].pop("default", None)
            kinds = [variant["properties"][tag]["enum"][0] for variant in having]
            listed = ", ".join(f"'{kind}'" for kind in kinds)
            told.append(
                {
                    "rule": f"!has(self.{name}) || self.{tag} in [{listed}]",
                    "message": f"{name} is for {tag} {', '.join(kinds)}",
                }
            )
    enum = [variant["properties"][tag]["enum"][0] for variant in variants]
    properties[tag] = {"type": "string", "enum": enum} | _words(properties[tag])
    rules = [rule for variant in variants for rule in variant.get(_RULES, [])]
    required = [
        name
        for name in names
        if name == tag or all(name in variant.get("required", ()) for variant in variants)
    ]
    merged: Schema = {"type": "object", "properties": properties, "required": required, "x-tag": tag}
    return merged | ({_RULES: told + rules} if told or rules else {})


def _tag(variants: Sequence[Schema], path: str) -> str:
    """The property that has one value in each variant, and another in each."""
    for name in variants[0]["properties"]:
        enums = [variant["properties"].get(name, {}).get("enum", ()) for variant in variants]
        if all(len(enum) == 1 for enum in enums) and len({enum[0] for enum in enums}) == len(variants):
            return str(name)
    raise TypeError(f"{path}: nothing tells the alternatives apart: each needs kind: Literal[…]")


def _common(parts: Sequence[Schema], path: str) -> Schema:
    """What the same property of several variants has in common; bounds that differ are left to pydantic."""
    if len({(part.get("type"), "properties" in part) for part in parts}) > 1:
        raise TypeError(f"{path}: has another type in another variant")
    first, *others = parts
    common = {
        key: value
        for key, value in first.items()
        if key in ("type", "properties", "items", "description")
        or all(other.get(key) == value for other in others)
    }
    for key, most in (("maxLength", MOST_CHARACTERS), ("maxItems", MOST_ITEMS)):
        if key in first and key not in common:
            common[key] = max(part.get(key, most) for part in parts)
    if "properties" in first and any(other["properties"] != first["properties"] for other in others):
        names = dict.fromkeys(name for part in parts for name in part["properties"])
        common["properties"] = {
            name: _common(
                [part["properties"][name] for part in parts if name in part["properties"]], f"{path}.{name}"
            )
            for name in names
        }
    if "enum" in first and "enum" not in common:
        common["enum"] = list(dict.fromkeys(value for part in parts for value in part.get("enum", ())))
    return common


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> Schema:
    merged = {**below, **above}
    if _RULES in below and _RULES in above:
        merged[_RULES] = [*below[_RULES], *above[_RULES]]
    return merged


def _kept(node: Mapping[str, Any]) -> Schema:
    return {key: node[key] for key in _KEPT if key in node}


def _words(node: Mapping[str, Any]) -> Schema:
    text = " ".join(str(node.get("description", "")).split())
    return {"description": text} if text else {}


def _string(node: Schema, _path: str) -> Schema:
    if "enum" in node or node.get("format") in _FORMATS - {"byte"}:
        return {"maxLength": node["maxLength"]} if "maxLength" in node else {}
    return {"maxLength": node.get("maxLength", MOST_CHARACTERS)}


def _number(node: Schema, _path: str) -> Schema:
    if node.get("type") == "boolean":
        return {}
    integer = node.get("type") == "integer"
    schema: Schema = {"format": "int64"} if integer else {}
    for exclusive, inclusive, step in (
        ("exclusiveMinimum", "minimum", 1),
        ("exclusiveMaximum", "maximum", -1),
    ):
        if exclusive not in node:
            continue
        bound = node[exclusive]
        schema |= {inclusive: int(bound) + step} if integer else {inclusive: bound, exclusive: True}
    return schema


def _type_of_enum(node: Schema, path: str) -> str:
    values = node.get("enum", ())
    for python, name in ((bool, "boolean"), (str, "string"), (int, "integer")):
        if values and all(isinstance(value, python) for value in values):
            return name
    raise TypeError(f"{path}: has no type that a CRD can name")


def _with_default(schema: Schema, node: Schema) -> Schema:
    """A default as short as it can be; null is no default but an absence."""
    default = node.get("default")
    if default is None:
        return schema
    default = json.loads(json.dumps(default))
    if schema["type"] == "object" and "properties" in schema:
        default = _shortest(schema, default)
        if _RULES in schema:
            # The server holds a default against the object's rules before it fills in what lies below.
            default = with_defaults(schema, default)
    schema["default"] = default
    if not isinstance(default, list | dict) and default != "":
        said = json.dumps(default) if isinstance(default, bool) else f"{default}"
        text = schema.get("description", "")
        schema["description"] = f"{text} (default {said})".strip()
    return schema


def _shortest(schema: Schema, default: Mapping[str, Any]) -> Schema:
    """Only the fields of an object's default that their own defaults do not give already."""
    short: Schema = {}
    for key, value in default.items():
        name = key if key in schema["properties"] else to_camel(key)
        below = schema["properties"][name]
        if value is None or below.get("default") == value:
            continue
        if "properties" in below and isinstance(value, Mapping):
            less = _shortest(below, value)
            if less or "default" not in below:
                short[name] = less
            continue
        if value or value in (0, False):
            short[name] = value
    return short


def _ordered(schema: Schema) -> Schema:
    """Keys in one order, words first: what people read in the file."""
    first = ("description", "type", "format", "default", "enum")
    keys = [key for key in first if key in schema] + sorted(key for key in schema if key not in first)
    return {key: schema[key] for key in keys}
