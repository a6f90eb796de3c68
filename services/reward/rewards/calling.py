"""One call to somewhere else: its deadline, its retries, its circuit breaker. Knows no protocol."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from services.common.errors import (
    AlreadyExists,
    Corrupted,
    Expired,
    InvalidInput,
    LostOwnership,
    Mismatch,
    NotFound,
    Overloaded,
    ServiceError,
    TooLarge,
    TrimtabError,
    Unavailable,
    UserError,
)
from services.reward.rewards.base import Caller
from services.reward.rewards.breaker import CircuitBreaker, Result, Rules

Answer = TypeVar("Answer")
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class TryAgain(Exception):
    """An attempt failed with `error`; another may go well, after `pause_seconds` where the other side named them."""

    def __init__(self, error: TrimtabError, pause_seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause_seconds = pause_seconds


class Calls:
    """Calls of one place. Attempts count singly for the circuit breaker; the deadline covers them together."""

    def __init__(
        self, place: str, *, timeout_seconds: float, attempts: int, failures: int, open_seconds: float
    ) -> None:
        self._place = place
        self._timeout_seconds = timeout_seconds
        self._attempts = attempts
        self._breaker = CircuitBreaker(Rules(failures=failures, seconds=open_seconds))

    def call(self, attempt: Callable[[float], Answer], caller: Caller) -> Answer:
        """`attempt(ends)` until it succeeds, at most `attempts` times; `ends` is of time.monotonic.

        Raises a TrimtabError: the attempt's own, or Unavailable while the circuit is open.
        """
        own = time.monotonic() + self._timeout_seconds
        ends = own if caller.deadline is None else min(own, caller.deadline)
        number = 0
        while True:
            number += 1
            try:
                return self._permitted(attempt, ends, in_own_time=ends == own)
            except TryAgain as again:
                pause = again.pause_seconds if again.pause_seconds is not None else _backoff(number)
                if number >= self._attempts or time.monotonic() + pause >= ends:
                    raise again.error from None
            time.sleep(pause)

    def _permitted(self, attempt: Callable[[float], Answer], ends: float, *, in_own_time: bool) -> Answer:
        permit = self._breaker.ask()
        if permit is None:
            raise Unavailable(
                f"{self._place} has failed repeatedly; it is asked again in {self._breaker.seconds_left():.1f} s"
            )
        result: Result = "failure"
        try:
            answer = attempt(ends)
            result = "success"
        except TryAgain as again:
            result = _judged(again.error, in_own_time)
            raise
        except TrimtabError as error:
            result = _judged(error, in_own_time)
            raise
        finally:
            self._breaker.record(permit, result)
        return answer


def _judged(error: TrimtabError, in_own_time: bool) -> Result:
    """What an error says of the other side: a refusal is an answer, and a caller in a hurry proves nothing."""
    if isinstance(error, UserError | Overloaded | TooLarge):
        return "success"
    if isinstance(error, Expired) and not in_own_time:
        return "dropped"
    return "failure"


def _backoff(number: int) -> float:
    full = min(_FIRST_PAUSE_SECONDS * 2.0 ** (number - 1), _LONGEST_PAUSE_SECONDS)
    return full * (0.5 + 0.5 * random.random())


_BY_STATUS: Mapping[str, type[TrimtabError]] = {
    kind.status: kind
    for kind in (
        InvalidInput,
        NotFound,
        AlreadyExists,
        Mismatch,
        Overloaded,
        Unavailable,
        Expired,
        LostOwnership,
        Corrupted,
    )
}


def answered_error(code: str, message: str) -> TrimtabError:
    """The error of this tree for a gRPC status that another service has named."""
    kind = _BY_STATUS.get(code)
    if kind is not None:
        return kind(message)
    # Its UNAUTHENTICATED is about our key, nothing that our own caller could mend.
    return ServiceError(f"{code}: {message}" if code not in ("", "INTERNAL") else message)
