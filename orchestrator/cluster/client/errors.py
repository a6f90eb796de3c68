"""What an API server may answer instead of the object, as branches of the one error tree.

UserError                          ServiceError
├── NotFound           404         ├── Gone           410: the version to watch from is too old
├── Forbidden          403         ├── Conflict       409: somebody was faster
├── Unauthenticated    401         └── Unavailable    not reachable, 429, 5xx
└── Refused            400, 422: the object is wrong, in the server's words
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from services.common.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    ServiceError,
    TrimtabError,
    Unauthenticated,
    Unavailable,
)


class Refused(InvalidInput):
    """The server does not take the object."""


class Conflict(ServiceError):
    """The object was changed, or made, by somebody else meanwhile."""

    status = "ABORTED"


class Gone(ServiceError):
    """The server no longer knows what came after that version: list anew."""

    status = "OUT_OF_RANGE"


_ERRORS: dict[int, type[TrimtabError]] = {
    400: Refused,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Refused,
}


def first_refused(steps: Iterable[Callable[[], object]]) -> Exception | None:
    """Do all steps; the first that the server refuses (the object, the right, the place), if any. Others are raised."""
    first: Exception | None = None
    for step in steps:
        try:
            step()
        except (Refused, Forbidden, NotFound) as error:
            first = first or error
    return first


def error_of(status: int, reason: str, body: str | bytes | None, what: str) -> TrimtabError:
    """The error for an answer. `what`: what was tried, for the text."""
    told = " ".join(_message(body).split()) or reason or f"status {status}"
    if status == 404 and not _message(body):
        # An object that is not there is answered with a Status; a path that nobody serves, with a line of text.
        told = (
            "the API server does not know this kind; what brings it is not installed, or in another version"
        )
    if status == 0 or status == 429 or status >= 500:
        return Unavailable(f"{what}: {told}")
    return _ERRORS.get(status, ServiceError)(f"{what}: {told}")


def _message(body: str | bytes | None) -> str:
    try:
        found = json.loads(body or "")
    except ValueError:
        return ""
    return str(found.get("message", "")) if isinstance(found, dict) else ""
