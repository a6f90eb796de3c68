"""Whether somebody else scales what is at rest, and how long to leave them alone. Pure: the time is handed in.

    zero is written ──overwritten──▶ written again, at once ──`SEVERAL` times──▶ contested: written again after a
          ▲                                                                      back-off that doubles, and told
          └────────────── it stays for as long as the back-off was ◀────────────────────┘

An autoscaler with a least of one replica never gives in. To write against it every few seconds would start and end a
pod each time; to give in would let a suspended run hold nodes for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

SEVERAL = 3
FIRST_SECONDS, MOST_SECONDS = 30.0, 600.0


@dataclass(frozen=True, slots=True)
class _Zero:
    """That was written of one Deployment."""

    times: int
    at: float

    @property
    def contested(self) -> bool:
        return self.times > SEVERAL

    @property
    def pause(self) -> float:
        """Seconds before it is written once more."""
        return (
            min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(self.times - SEVERAL - 1, 16))
            if self.contested
            else 0.0
        )


class Contests:
    """Of the Deployments of one owner. Times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self._zeros: dict[str, _Zero] = {}

    def wrote(self, deployment: str, now: float) -> None:
        """Its number was set to zero."""
        before = self._zeros.get(deployment)
        self._zeros[deployment] = _Zero(1 if before is None else before.times + 1, now)

    def pause(self, deployment: str, now: float) -> float:
        """Seconds for which its number is left to whoever else writes it; 0: it may be set to zero now."""
        zero = self._zeros.get(deployment)
        return 0.0 if zero is None else max(0.0, zero.at + zero.pause - now)

    def stayed(self, deployment: str, now: float) -> None:
        """Its number is still zero."""
        zero = self._zeros.get(deployment)
        if zero is not None and now - zero.at >= max(FIRST_SECONDS, zero.pause):
            del self._zeros[deployment]

    def told(self) -> str:
        """What is contested, in words; empty: nothing."""
        return "; ".join(
            f"{name} is at rest, and somebody else has scaled it {zero.times - 1} times: pause whoever does"
            for name, zero in sorted(self._zeros.items())
            if zero.contested
        )

    def look_again(self, now: float) -> float | None:
        """Seconds until something of it changes by itself."""
        left = [max(1.0, zero.at + zero.pause - now) for zero in self._zeros.values() if zero.contested]
        return min(left, default=None)
