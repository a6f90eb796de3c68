"""Which key is worked on next. Pure state: the time is handed in, nothing waits here.

    add ──▶ ready ──take──▶ working ──done──▶ gone, or ready again if it was added meanwhile
             ▲                 │
    due ── delayed ◀── after / failed (back-off)

A key is worked on by one worker at a time, and stands in `ready` once however often it was added.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
FIRST_SECONDS = 0.2
MOST_SECONDS = 300.0
_DOUBLINGS = 32
"""Enough for any bound, and no overflow."""


class WorkQueue(Generic[Key]):
    """Keys with back-off and de-duplication. Times are seconds of one clock that never goes back."""

    def __init__(self, *, first_seconds: float = FIRST_SECONDS, most_seconds: float = MOST_SECONDS) -> None:
        self._first, self._most = first_seconds, most_seconds
        # A dictionary is an ordered set: oldest first.
        self._ready: dict[Key, None] = {}
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        """Keys that could be worked on now, without those that are."""
        return len(self._ready)

    def add(self, key: Key) -> None:
        """As soon as may be. A delay that it had is over."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        else:
            self._ready.setdefault(key)

    def add_after(self, key: Key, seconds: float, now: float) -> None:
        """Not before so many seconds from now; what is due sooner stays so."""
        if key in self._ready or key in self._again:
            return
        due = now + max(0.0, seconds)
        self._due[key] = min(due, self._due.get(key, due))

    def failed(self, key: Key, now: float) -> float:
        """Again after a back-off that doubles with each failure in a row; its seconds."""
        failures = min(self._failures.get(key, 0) + 1, _DOUBLINGS)
        self._failures[key] = failures
        seconds = min(self._most, self._first * 2.0 ** (failures - 1))
        self.add_after(key, seconds, now)
        return seconds

    def succeeded(self, key: Key) -> None:
        """Its next failure is a first one."""
        self._failures.pop(key, None)

    def take(self, now: float) -> Key | None:
        """The oldest that is ready; None: there is none now. Whoever takes must call `done`."""
        self._wake(now)
        for key in self._ready:
            del self._ready[key]
            self._working.add(key)
            return key
        return None

    def done(self, key: Key) -> None:
        """It is not being worked on any more."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self._ready.setdefault(key)

    def wait_seconds(self, now: float) -> float | None:
        """Until the next is due; 0: now; None: nothing is waited for."""
        if self._ready:
            return 0.0
        if not self._due:
            return None
        return max(0.0, min(self._due.values()) - now)

    def _wake(self, now: float) -> None:
        for key in [key for key, due in self._due.items() if due <= now]:
            self.add(key)
