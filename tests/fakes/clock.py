"""A clock that moves only when it is told to."""

from __future__ import annotations


class FakeClock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
