"""Small types for the pure parts' tests."""

from __future__ import annotations

from typing import Any

from tests.fakes.kube.shapes import Shape

TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "integer"}


def fields(**properties: dict[str, Any]) -> dict[str, Any]:
    """An object with fields."""
    return {"type": "object", "properties": properties}


def keyed_list(*keys: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """A list of objects that are told apart by keys."""
    return {
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys),
        "items": fields(**properties),
    }  # fmt: skip


WHOLE = Shape(
    fields(
        text=TEXT,
        number=NUMBER,
        inner=fields(a=NUMBER, b=NUMBER, deep=fields(c=NUMBER)),
        items=keyed_list("name", name=TEXT, value=TEXT, more=fields(x=NUMBER)),
        ports=keyed_list("port", "protocol", port=NUMBER, protocol=TEXT | {"default": "TCP"}, name=TEXT),
        tags={"type": "array", "x-kubernetes-list-type": "set", "items": TEXT},
        words={"type": "array", "items": TEXT},
        labels={"type": "object", "additionalProperties": TEXT},
        fixed={"type": "object", "additionalProperties": TEXT, "x-kubernetes-map-type": "atomic"},
        free={"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    )
)
