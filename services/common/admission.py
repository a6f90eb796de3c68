"""A bound on what is in a service at once, for gRPC and HTTP alike. Knows no wire.

Refused is at the door, so that nothing piles up. Under a storm refusals are what costs: they are told once a second,
and where nobody waits as they are asked to, they come no faster than others can be answered beside them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from services.common.errors import Overloaded

RETRY_SECONDS = 1.0
REFUSALS_PER_SECOND = 500.0
LONGEST_SECONDS = 5.0
_TOLD_SECONDS = 1.0
_log = structlog.get_logger(__name__)


class Full(Overloaded):
    """All places are taken. Admission tells the log; nobody else need."""


class Admission:
    """Places for so many calls. clock: seconds that never go back."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self.count = 0
        self._lingering = 0
        self._refused = 0
        self._told = -_TOLD_SECONDS

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one place; Full when all are taken."""
        if self.count >= self._limit:
            self._tell()
            raise Full(
                f"{self.count} calls are waiting, the limit is {self._limit}", retry_seconds=RETRY_SECONDS
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    async def linger(self) -> None:
        """Wait before a refusal is sent: the more are refused at once, the longer, LONGEST_SECONDS at most.

        Only where a refused request holds nothing: what waits here must not be what fills the memory.
        """
        self._lingering += 1
        try:
            await asyncio.sleep(min(LONGEST_SECONDS, self._lingering / REFUSALS_PER_SECOND))
        finally:
            self._lingering -= 1

    def _tell(self) -> None:
        self._refused += 1
        now = self._clock()
        if now - self._told >= _TOLD_SECONDS:
            _log.warning("calls refused for want of a place", refused=self._refused, limit=self._limit)
            self._refused, self._told = 0, now
