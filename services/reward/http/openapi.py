"""The OpenAPI page: what FastAPI cannot see, because bodies are parsed by ourselves. Knows no handler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from services.reward.config import NAME_PATTERN
from services.reward.http.calls import DIGEST_HEADER, MODEL_HEADER, TIMEOUT_HEADER
from services.reward.http.shapes import MAX_ROWS

_REF = "#/components/schemas/{model}"
_RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
_DESCRIPTIONS = {
    400: "The request cannot be accepted, or does not fit the model.",
    401: "No valid key.",
    403: "The key may not do this.",
    404: "There is no such model.",
    405: "Not a method of this path.",
    408: "The body did not arrive in time.",
    409: "The name is taken.",
    413: "The body is too large. Never worth a retry.",
    415: "The body is not application/json.",
    429: "No room now.",
    500: "Something here is at fault; the message has an id that the log explains.",
    503: "Starting, going down, or a service behind this one cannot be reached.",
    504: "No answer within the time.",
}
BODY_STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 504)
PLAIN_STATUSES = (400, 401, 403, 404, 405, 429, 500, 503)


class ErrorContent(BaseModel):
    """code: gRPC's name for the status. violations: what was expected of which field."""

    code: str
    message: str
    violations: dict[str, str] = Field(description="Field to what was expected of it.")


class ErrorAnswer(BaseModel):
    """The one form of every error."""

    error: ErrorContent


def error_responses(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these statuses."""
    return {
        status: {"model": ErrorAnswer, "description": _DESCRIPTIONS[status]}
        | ({"headers": _RETRY} if status in (429, 503) else {})
        for status in statuses
    }


def request_body(kind: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of an operation that takes this body."""
    schema = {"$ref": _REF.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def name_parameter() -> dict[str, Any]:
    """The {name} of a path."""
    schema = {"type": "string", "minLength": 1, "maxLength": 63, "pattern": NAME_PATTERN}
    return {"name": "name", "in": "path", "required": True, "schema": schema}


def query_parameter(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    """An optional query parameter."""
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


MODEL_PARAMETER = query_parameter(
    "model", {"type": "string", "maxLength": 63}, "Which model; empty: the only one that you may use."
)
RENDERED_PARAMETER = query_parameter(
    "rendered", {"type": "boolean"}, "Whether texts have a chat template around them already."
)
TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "Seconds after which nobody waits for the answer any more.",
}
SCORED_HEADERS = {
    MODEL_HEADER: {"description": "The model that scored.", "schema": {"type": "string"}},
    DIGEST_HEADER: {
        "description": "Its digest: equal digests score equally; several where rows differ.",
        "schema": {"type": "string"},
    },
}


def complete(page: dict[str, Any], bodies: Iterable[type[BaseModel]], *, rows: int) -> dict[str, Any]:
    """FastAPI's page with the bodies' schemas put in, and this service's own limit of rows."""
    _, definitions = models_json_schema([(kind, "validation") for kind in bodies], ref_template=_REF)
    schemas: dict[str, Any] = page.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    _limit_rows(schemas, min(rows, MAX_ROWS))
    return page


def _limit_rows(node: Any, rows: int) -> None:
    if isinstance(node, dict):
        if node.get("maxItems") == MAX_ROWS:
            node["maxItems"] = rows
        for child in node.values():
            _limit_rows(child, rows)
    elif isinstance(node, list):
        for child in node:
            _limit_rows(child, rows)
