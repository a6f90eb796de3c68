"""What was measured last of each object, between the scalers that measure and the reconcilers that tell it."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from orchestrator.cluster.control.resources import Ref

Seen = TypeVar("Seen")


class Insights(Generic[Seen]):
    """Safe for several threads. `nothing`: of an object that nobody has measured.

    `uid`: of the owner; what was made anew under an old name has been measured by nobody.
    """

    def __init__(self, nothing: Seen) -> None:
        self._lock = threading.Lock()
        self._nothing = nothing
        self._kept: dict[Ref, tuple[str, Seen]] = {}

    def get(self, owner: Ref, uid: str) -> Seen:
        """The last, or an empty one."""
        of, insight = self._kept.get(owner, (uid, self._nothing))
        return insight if of == uid else self._nothing

    def put(self, owner: Ref, uid: str, insight: Seen) -> bool:
        """Keep it; whether it says anything new."""
        with self._lock:
            new = self.get(owner, uid) != insight
            self._kept[owner] = uid, insight
            return new

    def forget(self, owner: Ref) -> None:
        """The object is gone, or nothing is measured any more."""
        with self._lock:
            self._kept.pop(owner, None)
