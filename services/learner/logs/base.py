"""The port of the metric logs, and what is common to all: who the run is. Knows no library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from services.common.spec.metric_logs import LoggingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What a log needs to know. `uid` survives a resume, and so does everything under `folder`."""

    uid: str
    name: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's spec, nested, as JSON."""


class MetricLog(Protocol):
    """One place where metrics go. Used by one thread alone; may raise anything and take its time."""

    def write(self, step: int, moment: float, metrics: Mapping[str, float]) -> None:
        """A step's metrics. step: steps done. moment: seconds since the epoch."""
        ...

    def close(self) -> None:
        """All of it is written."""
        ...


Open = Callable[[RunIdentity, LoggingSpec, int], MetricLog]
"""Open a log for a run that continues after so many steps: what it holds beyond them is superseded."""


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b.c`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """What can be drawn: NaN and infinity make some of these libraries refuse the whole step."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
