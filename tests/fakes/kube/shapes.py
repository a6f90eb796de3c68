"""How a type's fields merge: one node per field, from a JSON schema with Kubernetes' extensions.

Serves built-in types (PyPI kubernetes-validate carries Kubernetes' own OpenAPI) and CRDs alike. Knows no values.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

from kubernetes_validate.utils import all_versions, schema_contents  # type: ignore[import-untyped]

Schema = dict[str, Any]

# Keys of map lists that the API server fills in before it looks at them.
_KEY_DEFAULTS = {"protocol": "TCP"}


class Shape:
    """A field's type. `definitions` resolves its references."""

    def __init__(self, schema: Schema, definitions: Schema | None = None) -> None:
        self.definitions = definitions or {}
        while "$ref" in schema:
            schema = self.definitions[schema["$ref"].rpartition("/")[2]]
        self.schema = schema
        self.properties: dict[str, Schema] = schema.get("properties") or {}
        self._fields: dict[str, Shape | None] = {}

    @cached_property
    def types(self) -> tuple[str, ...]:
        """JSON types that it may have; none: any."""
        named = self.schema.get("type", ())
        return (named,) if isinstance(named, str) else tuple(named)

    @cached_property
    def open(self) -> bool:
        """Whether unknown fields are kept."""
        if self.schema.get("x-kubernetes-preserve-unknown-fields"):
            return True
        bare = "properties" not in self.schema and "additionalProperties" not in self.schema
        # A built-in type without fields is raw JSON; a CRD's is an empty object.
        return bare and (not self.types or ("object" in self.types and bool(self.definitions)))

    @cached_property
    def atomic_object(self) -> bool:
        """Whether an object is replaced as a whole."""
        return bool(self.schema.get("x-kubernetes-map-type") == "atomic")

    @cached_property
    def list_type(self) -> str:
        """atomic, set or map."""
        return str(self.schema.get("x-kubernetes-list-type", "atomic"))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Of a map list, in alphabetical order."""
        return tuple(sorted(self.schema.get("x-kubernetes-list-map-keys", ())))

    @cached_property
    def items(self) -> Shape:
        """Of a list's elements."""
        below = self.schema.get("items")
        return Shape(below, self.definitions) if below else ANY

    @cached_property
    def additional(self) -> Shape | None:
        """Of the values of a map with free keys."""
        below = self.schema.get("additionalProperties")
        if isinstance(below, dict):
            return Shape(below, self.definitions)
        return ANY if below or self.open else None

    def field(self, name: str) -> Shape | None:
        """Of a field; None: there is no such field."""
        if name in self._fields:
            return self._fields[name]
        below = self.properties.get(name)
        found = self.additional if below is None else Shape(below, self.definitions)
        if below is not None:  # free keys come and go: only declared ones are worth remembering
            self._fields[name] = found
        return found

    def declares(self, name: str) -> bool:
        """Whether the field is part of the type, not a key of a map."""
        return name in self.properties

    def key_default(self, key: str) -> Any:
        """What a map list's key is where an element leaves it out; None: it must be there."""
        declared = self.items.properties.get(key, {})
        default = declared.get("default")
        return _KEY_DEFAULTS.get(key) if default is None and self.definitions else default


ANY = Shape({"x-kubernetes-preserve-unknown-fields": True})


@cache
def builtin_definitions() -> Schema:
    """Kubernetes' definitions by full name, of the newest release that the package has."""
    newest = max(all_versions(), key=lambda version: [int(part) for part in version.split(".")])
    content: Schema = schema_contents(f"kubernetes-json-schema/v{newest}-local/_definitions.json", newest)
    found: Schema = content["$defs"]
    return found


@cache
def builtin_shape(definition: str) -> Shape:
    """Of a built-in type, such as io.k8s.api.apps.v1.Deployment."""
    return Shape(builtin_definitions()[definition], builtin_definitions())


OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def custom_shape(schema: Schema) -> Shape:
    """Of a CRD's version: its schema, with what every object has."""
    shape = Shape(schema)
    shape.properties = shape.properties | {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    shape._fields["metadata"] = builtin_shape(OBJECT_META)
    return shape
