"""Which key is worked on next. Pure state: the time is handed in, nothing waits here.

    add ──▶ ready ──take──▶ working ──done──▶ gone, or ready again if it was added meanwhile
             ▲                 │
    due ── delayed ◀── after / failed (back-off)

A key is worked on by one worker at a time, and stands in `ready` once however often it was added. Since when it could
be worked on is kept, for whoever measures how far the workers are behind.
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
        self._ready: dict[Key, float] = {}
        self._working: dict[Key, float] = {}
        self._again: dict[Key, float] = {}
        self._due: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        """Keys that could be worked on now, without those that are."""
        return len(self._ready)

    def add(self, key: Key, now: float) -> None:
        """As soon as may be. A delay that it had is over."""
        self._due.pop(key, None)
        (self._again if key in self._working else self._ready).setdefault(key, now)

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
        for key, since in self._ready.items():
            del self._ready[key]
            self._working[key] = max(0.0, now - since)
            return key
        return None

    def waited(self, key: Key) -> float:
        """Seconds for which the key that is worked on stood here."""
        return self._working[key]

    def done(self, key: Key) -> None:
        """It is not being worked on any more."""
        self._working.pop(key, None)
        if key in self._again:
            self._ready.setdefault(key, self._again.pop(key))

    def wait_from(self, now: float) -> None:
        """Nobody was to work before: what could be worked on waits from now on."""
        self._ready = dict.fromkeys(self._ready, now)
        self._due = {key: max(due, now) for key, due in self._due.items()}

    def wait_seconds(self, now: float) -> float | None:
        """Until the next is due; 0: now; None: nothing is waited for."""
        if self._ready:
            return 0.0
        if not self._due:
            return None
        return max(0.0, min(self._due.values()) - now)

    def _wake(self, now: float) -> None:
        for key, due in [(key, due) for key, due in self._due.items() if due <= now]:
            self.add(key, due)
