"""Waiting out an outage of the reward service, so that a restart costs a training run a retry, not the run.

Decides which errors are worth waiting for and for how long; sleeps and calls are its caller's.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from trimtab.clients.errors import (
    CancelledError,
    DeadlineExceededError,
    OverloadedError,
    TrimtabClientError,
    UnavailableError,
)

DEFAULT_PATIENCE_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 10.0
# A score may be asked for again at no harm. A call that the caller did not cancel was cancelled by a service
# that shuts down; a deadline passes when a machine vanishes without a word.
_PASSING = (UnavailableError, OverloadedError, DeadlineExceededError, CancelledError)
_log = logging.getLogger("trimtab")


@dataclass
class Patience:
    """How outages of one service are waited out; shared by all the calls of a client, from any thread.

    seconds: from a call's first failure to its last attempt. One line is logged when an outage begins and
    one when it ends, however many calls it met.
    """

    seconds: float
    target: str
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _away_since: float | None = None

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise ValueError("patience_seconds must be at least 0")

    def failed(self, error: TrimtabClientError, *, since: float, attempt: int) -> float:
        """Seconds to wait before the next attempt. Raises the error where none should follow.

        since: when this call failed first. attempt: how many have failed, from 1.
        """
        left = since + self.seconds - self.clock()
        if not isinstance(error, _PASSING) or left <= 0:
            raise error
        with self._lock:
            begins, self._away_since = self._away_since is None, self._away_since or self.clock()
        if begins:
            _log.warning(
                "reward service %s does not answer (%s); trying again for %.0f s", self.target, error, left
            )
        return min(_pause(error, attempt), left)

    def answered(self) -> None:
        """A call succeeded: an outage, if there was one, is over."""
        if self._away_since is None:
            return
        with self._lock:
            since, self._away_since = self._away_since, None
        if since is not None:
            _log.warning("reward service %s answers again after %.1f s", self.target, self.clock() - since)


def _pause(error: TrimtabClientError, attempt: int) -> float:
    if isinstance(error, OverloadedError):
        return (error.retry_seconds or _FIRST_PAUSE_SECONDS) * (1 + 0.25 * random.random())
    # The exponent is bounded as well: 2.0 ** 1100 is no float.
    full = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 10), _LONGEST_PAUSE_SECONDS)
    return full * (0.5 + 0.5 * random.random())
