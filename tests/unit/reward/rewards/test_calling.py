"""Retries, deadlines and the breaker around one call, with attempts of the test's own."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from services.common.errors import (
    Expired,
    InvalidInput,
    Mismatch,
    Overloaded,
    ServiceError,
    TooLarge,
    TrimtabError,
    Unavailable,
)
from services.reward.rewards.base import Caller
from services.reward.rewards.calling import Calls, TryAgain, answered_error

NOBODY = Caller()


def calls(*, attempts: int = 3, failures: int = 100, timeout_seconds: float = 30.0) -> Calls:
    return Calls(
        "the place", timeout_seconds=timeout_seconds, attempts=attempts, failures=failures, open_seconds=60.0
    )


class Attempts:
    """Raises one error after the other, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.ends: list[float] = []

    def __call__(self, ends: float) -> str:
        self.ends.append(ends)
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def again(error: TrimtabError, pause: float | None = 0.0) -> TryAgain:
    return TryAgain(error, pause)


def test_what_is_worth_it_is_tried_again() -> None:
    """UNAVAILABLE and full are tried again, with one deadline for all attempts."""
    attempts = Attempts(again(Unavailable("away")), again(Overloaded("full")))
    assert calls().call(attempts, NOBODY) == "answer"
    assert len(attempts.ends) == 3
    assert len(set(attempts.ends)) == 1


def test_the_last_error_is_told_when_attempts_are_over() -> None:
    """After `attempts` attempts the error is the caller's, no other one."""
    attempts = Attempts(*[again(Unavailable(f"away {number}")) for number in range(5)])
    with pytest.raises(Unavailable, match="away 2"):
        calls(attempts=3).call(attempts, NOBODY)
    assert len(attempts.ends) == 3


@pytest.mark.parametrize(
    "error", [InvalidInput("no"), Mismatch("no"), TooLarge("no"), Expired("no"), ServiceError("no")]
)
def test_nothing_else_is_tried_again(error: TrimtabError) -> None:
    """An error that another attempt cannot mend is told at once."""
    attempts = Attempts(error)
    with pytest.raises(type(error), match="no"):
        calls().call(attempts, NOBODY)
    assert len(attempts.ends) == 1


def test_a_pause_beyond_the_deadline_is_not_waited_for() -> None:
    """Where the other side asks for more time than there is, its refusal is told now, with its own number."""
    attempts = Attempts(again(Overloaded("full", 3600.0), 3600.0))
    began = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        calls().call(attempts, NOBODY)
    assert time.monotonic() - began < 25
    assert caught.value.retry_seconds == 3600.0


def test_the_deadline_is_the_nearer_of_both() -> None:
    """The caller's deadline counts where it is nearer than the configured limit, and the other way round."""
    now = time.monotonic()
    attempts = Attempts()
    calls(timeout_seconds=30.0).call(attempts, Caller(deadline=now + 5))
    calls(timeout_seconds=30.0).call(attempts, Caller(deadline=now + 500))
    assert attempts.ends[0] == now + 5
    assert now + 30 <= attempts.ends[1] <= time.monotonic() + 30


@pytest.mark.parametrize(
    ("make", "opens"),
    [
        (lambda: again(Unavailable("away")), True),
        (lambda: ServiceError("500"), True),
        (lambda: Expired("silent"), True),
        (lambda: RuntimeError("a mistake of ours"), True),
        (lambda: again(Overloaded("full")), False),
        (lambda: TooLarge("too large"), False),
        (lambda: InvalidInput("bad"), False),
    ],
)
def test_what_opens_the_circuit(make: Callable[[], Exception], opens: bool) -> None:
    """A place that fails is left alone after some failures; one that refuses is working."""
    one = calls(attempts=1, failures=3)
    for _ in range(3):
        with pytest.raises((TrimtabError, RuntimeError)):
            one.call(Attempts(make()), NOBODY)
    attempts = Attempts()
    if opens:
        with pytest.raises(
            Unavailable, match=r"the place has failed repeatedly; it is asked again in [56]\d\.\d s"
        ):
            one.call(attempts, NOBODY)
        assert attempts.ends == []
    else:
        assert one.call(attempts, NOBODY) == "answer"


def test_a_caller_in_a_hurry_opens_no_circuit() -> None:
    """A deadline nearer than the configured limit that passes says nothing of the other side."""
    one = calls(attempts=1, failures=1)
    for _ in range(3):
        with pytest.raises(Expired):
            one.call(Attempts(Expired("too late")), Caller(deadline=time.monotonic() + 1))
    assert one.call(Attempts(), NOBODY) == "answer"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidInput),
        ("FAILED_PRECONDITION", Mismatch),
        ("RESOURCE_EXHAUSTED", Overloaded),
        ("DEADLINE_EXCEEDED", Expired),
        ("INTERNAL", ServiceError),
        ("UNAUTHENTICATED", ServiceError),
        ("SOMETHING_NEW", ServiceError),
        ("", ServiceError),
    ],
)
def test_another_services_error_keeps_its_status(code: str, kind: type[TrimtabError]) -> None:
    """What a row's error is called over there it is called here; what concerns our key is our own failure."""
    error = answered_error(code, "why")
    assert type(error) is kind
    assert str(error).endswith("why")
