"""What a scaler can do. Knows no cluster: whoever executes maps these to /scale, annotations and pods."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.planning.observed import Memory


@dataclass(frozen=True, slots=True)
class Scale:
    """Write the Deployment's number. When it falls, the named replicas are the ones to go: give them the
    lowest deletion cost first. They hold no group."""

    role: str
    replicas: int
    reason: str
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell a replica to take nothing more and hand back what it holds. Its number follows once it is empty."""

    role: str
    replica: str
    reason: str


@dataclass(frozen=True, slots=True)
class Undrain:
    """Tell a draining replica to go on: it is wanted again, and warm."""

    role: str
    replica: str
    reason: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep this for the next decision (`Observed.memory`). Losing it costs accuracy for minutes, no more."""

    memory: Memory


Action = Scale | Drain | Undrain | Remember
