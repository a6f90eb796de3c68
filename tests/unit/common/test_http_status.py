"""Errors to HTTP answers."""

from __future__ import annotations

import json

import pytest

from services.common.errors import (
    AlreadyExists,
    ConfigError,
    Corrupted,
    Expired,
    Forbidden,
    InvalidInput,
    LostOwnership,
    Mismatch,
    NotFound,
    Overloaded,
    ServiceError,
    StorageFull,
    TooLarge,
    TrimtabError,
    Unauthenticated,
    Unavailable,
)
from services.common.http_status import HttpRefusal, http_answer


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidInput("m"), 400, "INVALID_ARGUMENT"),
        (ConfigError("m"), 400, "INVALID_ARGUMENT"),
        (Mismatch("m"), 400, "FAILED_PRECONDITION"),
        (Unauthenticated("m"), 401, "UNAUTHENTICATED"),
        (Forbidden("m"), 403, "PERMISSION_DENIED"),
        (NotFound("m"), 404, "NOT_FOUND"),
        (AlreadyExists("m"), 409, "ALREADY_EXISTS"),
        (LostOwnership("m"), 409, "ABORTED"),
        (TooLarge("m"), 413, "RESOURCE_EXHAUSTED"),
        (Overloaded("m"), 429, "RESOURCE_EXHAUSTED"),
        (TrimtabError("m"), 500, "INTERNAL"),
        (ServiceError("m"), 500, "INTERNAL"),
        (Corrupted("m"), 500, "DATA_LOSS"),
        (Unavailable("m"), 503, "UNAVAILABLE"),
        (Expired("m"), 504, "DEADLINE_EXCEEDED"),
        (StorageFull("m"), 507, "RESOURCE_EXHAUSTED"),
        (HttpRefusal(405, "UNIMPLEMENTED", "m"), 405, "UNIMPLEMENTED"),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int, code: str) -> None:
    """The table, and the one form of the body."""
    answer = http_answer(error)
    assert (answer.status, answer.incident) == (status, "")
    assert json.loads(answer.body) == {"error": {"code": code, "message": "m", "violations": {}}}


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (30, "30")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: str) -> None:
    """Never 0, never earlier than asked."""
    assert ("retry-after", header) in http_answer(Overloaded("full", retry_seconds=seconds)).headers


def test_only_what_may_be_retried_says_when() -> None:
    """An oversized request would be the same again."""
    assert "retry-after" in dict(http_answer(Unavailable("m")).headers)
    for error in (TooLarge("m"), InvalidInput("m"), ServiceError("m")):
        assert "retry-after" not in dict(http_answer(error).headers)


def test_what_is_not_ours_is_an_incident() -> None:
    """The text of an unexpected error stays in the log."""
    answer = http_answer(RuntimeError("password is 123"))
    assert answer.status == 500 and len(answer.incident) == 8
    assert answer.incident.encode() in answer.body and b"123" not in answer.body


def test_an_answer_is_bounded_and_of_one_line() -> None:
    """However long, many and strange what an error quotes is."""
    violations = {f"field{index}\n\ud800": "x" * 1000 for index in range(1000)}
    answer = http_answer(InvalidInput("line\nline " + "y" * 10_000, violations))
    content = json.loads(answer.body)["error"]
    assert len(answer.body) < 20_000
    assert content["message"].startswith("line line y") and len(content["message"]) == 800
    assert len(content["violations"]) == 32
