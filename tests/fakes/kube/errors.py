"""What an API server answers when it refuses: an ApiError knows its HTTP status and its Status body.

The words are those of the real one, since people and programs read them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that is wrong with an object: `reason` as in StatusCause, `path` as people write it."""

    reason: str
    message: str
    path: str

    @property
    def text(self) -> str:
        """As in the message of the whole."""
        return f"{self.path}: {self.message}"

    def body(self) -> dict[str, str]:
        """As in details.causes."""
        return {"reason": self.reason, "message": self.message, "field": self.path}


@dataclass
class ApiError(Exception):
    """A refusal. `details` goes into the Status as it is."""

    code: int
    reason: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The Status."""
        status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": self.details, "code": self.code,
        }  # fmt: skip
        return {name: value for name, value in status.items() if value or name == "metadata"}


def _details(group: str, kind: str, name: str) -> dict[str, Any]:
    found = {"name": name, "group": group, "kind": kind}
    return {key: value for key, value in found.items() if value}


def _qualified(group: str, kind: str) -> str:
    return f"{kind}.{group}" if group else kind


def not_found(group: str, plural: str, name: str) -> ApiError:
    """404 for an object."""
    words = f'{_qualified(group, plural)} "{name}" not found'
    return ApiError(404, "NotFound", words, _details(group, plural, name))


def no_such_path() -> ApiError:
    """404 for a path that serves nothing."""
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def already_exists(group: str, plural: str, name: str) -> ApiError:
    """409 for a create."""
    words = f'{_qualified(group, plural)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", words, _details(group, plural, name))


def conflict(group: str, plural: str, name: str, why: str) -> ApiError:
    """409 for a write that rests on another state of the object."""
    words = f'Operation cannot be fulfilled on {_qualified(group, plural)} "{name}": {why}'
    return ApiError(409, "Conflict", words, _details(group, plural, name))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def apply_conflict(causes: Sequence[Cause], words: str) -> ApiError:
    """409 for an apply of fields that another manager owns."""
    return ApiError(409, "Conflict", words, {"causes": [cause.body() for cause in causes]})


def invalid(group: str, kind: str, name: str, causes: Sequence[Cause]) -> ApiError:
    """422 with everything that is wrong."""
    texts = [cause.text for cause in causes]
    listed = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details = _details(group, kind, name) | {"causes": [cause.body() for cause in causes]}
    return ApiError(422, "Invalid", f'{_qualified(group, kind)} "{name}" is invalid: {listed}', details)


def bad_request(words: str) -> ApiError:
    """400."""
    return ApiError(400, "BadRequest", words)


def not_allowed() -> ApiError:
    """405."""
    words = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", words)


def untyped(words: str) -> ApiError:
    """500 without a reason: what the real one answers to an apply that does not fit the type."""
    return ApiError(500, "", words)


def gone(words: str) -> ApiError:
    """410: the history does not reach back so far."""
    return ApiError(410, "Expired", words)


def invalid_value(path: str, value: Any, why: str) -> Cause:
    """`path: Invalid value: …: why`."""
    return Cause("FieldValueInvalid", f"Invalid value: {shown(value)}: {why}", path)


def forbidden_value(path: str, why: str) -> Cause:
    """`path: Forbidden: why`."""
    return Cause("FieldValueForbidden", f"Forbidden: {why}", path)


def required_value(path: str, why: str = "") -> Cause:
    """`path: Required value`."""
    return Cause("FieldValueRequired", f"Required value: {why}" if why else "Required value", path)


def shown(value: Any) -> str:
    """A value as in an error."""
    return json.dumps(value, ensure_ascii=False)
