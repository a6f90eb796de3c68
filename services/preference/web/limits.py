"""Owns how often somebody may ask: one bucket for each person, one for each address whose links are not valid."""

from __future__ import annotations

import time
from collections.abc import Callable

from services.common.access.quota import Quotas
from services.common.errors import Overloaded


class RateLimit:
    """`per_minute` requests for each key, a minute's worth of them at once after a pause."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets = Quotas()

    def take(self, key: str) -> None:
        """Count one. Overloaded says when the next one will pass."""
        try:
            self._buckets.take(key, 1, per_minute=self._per_minute, now=self._clock())
        except Overloaded as error:
            raise Overloaded("too many requests: wait a moment", error.retry_seconds) from None
