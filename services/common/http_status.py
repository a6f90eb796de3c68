"""The one place where the error tree becomes an HTTP status with a JSON body. Knows no service and no framework.

    {"error": {"code": "INVALID_ARGUMENT", "message": "one line", "violations": {"field": "what was expected"}}}

`code` is gRPC's name for the status, so that a caller learns one vocabulary; statuses are those of
google/rpc/code.proto. What is not a TrimtabError becomes 500 with a short id, its text only in the log.
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass

from services.common.errors import InvalidInput, Overloaded, StorageFull, TooLarge, TrimtabError

_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_MAX_MESSAGE = 800
_MAX_FIELD = 160
_MAX_VIOLATIONS = 32

Headers = tuple[tuple[str, str], ...]


class HttpRefusal(Exception):
    """A request refused by HTTP's own rules: a method, a content type, a body that never ends."""

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What goes onto the wire. `incident` is the id of an unexpected error, empty for expected ones."""

    status: int
    code: str
    body: bytes
    headers: Headers = ()
    incident: str = ""


def http_answer(error: Exception) -> HttpAnswer:
    """The answer for an error: status, JSON body, and the headers that belong to it."""
    if isinstance(error, HttpRefusal):
        return _answer(error.status, error.code, str(error), headers=error.headers)
    if isinstance(error, TrimtabError):
        violations = error.violations if isinstance(error, InvalidInput) else {}
        message = str(error) or type(error).__name__
        return _answer(_status(error), error.status, message, violations, _headers(error))
    incident = secrets.token_hex(4)
    return _answer(
        500, "INTERNAL", f"internal error {incident}: the service's log says more", incident=incident
    )


def _status(error: TrimtabError) -> int:
    # Never retried, so not "too many requests".
    if isinstance(error, TooLarge):
        return 413
    if isinstance(error, StorageFull):
        return 507
    return _STATUS.get(error.status, 500)


def _headers(error: TrimtabError) -> Headers:
    if isinstance(error, Overloaded):
        return (("retry-after", str(max(1, math.ceil(error.retry_seconds)))),)
    if error.status == "UNAVAILABLE":
        return (("retry-after", "1"),)
    if error.status == "UNAUTHENTICATED":
        return (("www-authenticate", "Bearer"),)
    return ()


def _answer(
    status: int,
    code: str,
    message: str,
    violations: dict[str, str] | None = None,
    headers: Headers = (),
    incident: str = "",
) -> HttpAnswer:
    shown = list((violations or {}).items())[:_MAX_VIOLATIONS]
    content = {
        "code": code,
        "message": _one_line(message, _MAX_MESSAGE),
        "violations": {_one_line(field, _MAX_FIELD): _one_line(text, _MAX_FIELD) for field, text in shown},
    }
    # ASCII only: a message may quote what is no valid text.
    body = json.dumps({"error": content}).encode()
    return HttpAnswer(status, code, body, (("content-type", "application/json"), *headers), incident)


def _one_line(text: str, most: int) -> str:
    return " ".join(text.split())[:most]
