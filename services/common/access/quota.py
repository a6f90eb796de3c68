"""Rows per minute, as token buckets: one for each name. Knows no clock and no caller.

A bucket holds one minute's rows, so a caller may spend them at once after a pause, and is refilled steadily.
"""

from __future__ import annotations

from services.common.errors import Overloaded, TooLarge

_MINUTE = 60.0
# Names come from the keys file; beyond this many, full buckets are forgotten: they hold no memory of anything.
_MANY = 1024


class Quotas:
    """The buckets of all names."""

    def __init__(self) -> None:
        # name -> (rows left, when that was so, seconds)
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, rows: int, *, per_minute: int, now: float) -> None:
        """Take rows from the bucket, all or none. `now` is in seconds and never goes back.

        Overloaded says after how many seconds the same call would pass; TooLarge: it never would.
        """
        if rows > per_minute:
            raise TooLarge(f"{rows} rows in one call, {name} may have {per_minute} a minute scored")
        left = self._left(name, per_minute, now)
        if rows > left:
            seconds = (rows - left) * _MINUTE / per_minute
            raise Overloaded(
                f"{name} may have {per_minute} rows a minute scored; {rows} more in {seconds:.1f} s",
                retry_seconds=seconds,
            )
        if len(self._buckets) >= _MANY:
            self._forget(now)
        self._buckets[name] = (left - rows, now)

    def give_back(self, name: str, rows: int) -> None:
        """Put back rows that were taken and not worked on; a bucket never holds more than a minute's."""
        if name in self._buckets:
            left, then = self._buckets[name]
            self._buckets[name] = (left + rows, then)

    def _left(self, name: str, per_minute: int, now: float) -> float:
        left, then = self._buckets.get(name, (float(per_minute), now))
        return min(left + (now - then) * per_minute / _MINUTE, per_minute)

    def _forget(self, now: float) -> None:
        # After a minute any bucket is full again.
        self._buckets = {name: kept for name, kept in self._buckets.items() if now - kept[1] < _MINUTE}
