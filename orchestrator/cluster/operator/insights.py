"""What was measured last of each run, between the scaler that measures and the reconcilers that tell it."""

from __future__ import annotations

import threading

from orchestrator.cluster.control.insight import Insight
from orchestrator.cluster.control.resources import Ref

_NOTHING = Insight()


class Insights:
    """Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Ref, Insight] = {}

    def get(self, run: Ref) -> Insight:
        """The last, or an empty one."""
        return self._kept.get(run, _NOTHING)

    def put(self, run: Ref, insight: Insight) -> bool:
        """Keep it; whether it says anything new."""
        with self._lock:
            new = self._kept.get(run, _NOTHING) != insight
            self._kept[run] = insight
            return new

    def forget(self, run: Ref) -> None:
        """The run is gone, or nothing is measured any more."""
        with self._lock:
            self._kept.pop(run, None)
