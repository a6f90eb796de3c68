"""Numbers of replicas at suspend and resume, and held ones. Pure.

A Deployment that goes to zero remembers what it had in an annotation, whoever scaled it; when it comes back it gets
that. So `External` finds its own number again, and `Auto` begins where it was, with nothing measured yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.control.facts import replicas_of
from orchestrator.cluster.kinds import ServiceRole
from orchestrator.cluster.kinds.base import GROUP
from orchestrator.cluster.render.services import wanted_replicas

RESUME = f"{GROUP}/resume-replicas"


@dataclass(frozen=True, slots=True)
class Number:
    """What is to be written of one Deployment. `replicas` None: nothing. `remember` None: forget."""

    replicas: int | None
    remember: int | None
    reason: str = ""


def number_for(deployment: Mapping[str, Any], role: ServiceRole, *, rest: bool) -> Number:
    """The number that this Deployment is to have. `rest`: nobody is wanted (suspended, finished, not admitted)."""
    present, kept = replicas_of(deployment), remembered(deployment)
    if rest:
        if kept is None:
            kept = present if present > 0 or _was_scaled(deployment) else wanted_replicas(role)
        return Number(0 if present else None, kept, "nobody is wanted")
    target: int | None = None
    reason = ""
    if role.scaling.mode == "Static":
        target, reason = role.replicas, f"held at {role.replicas}"
    elif kept is not None and present == 0:
        target, reason = kept, "back to what it had"
    if role.scaling.mode == "Auto":
        least = 1 if role.scaling.minimum is None else role.scaling.minimum
        if (present if target is None else target) < least:
            target, reason = wanted_replicas(role), "the least of Auto"
    return Number(None if target == present else target, None, reason)


def remembered(deployment: Mapping[str, Any]) -> int | None:
    """What it had before it went to zero."""
    text = (deployment["metadata"].get("annotations") or {}).get(RESUME, "")
    return int(text) if text.isdecimal() else None


def _was_scaled(deployment: Mapping[str, Any]) -> bool:
    """Whether somebody changed it since it was made: then its zero is meant."""
    return bool(deployment["metadata"].get("generation", 1) > 1)
