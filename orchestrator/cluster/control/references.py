"""Which runs refer to which reward models, read from objects as they are, valid or not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.names import service_of


def stages_that_refer(run: Mapping[str, Any], namespace: str, name: str) -> tuple[str, ...]:
    """Services of the run whose pods pass their groups on to this reward model; as a rule none or one."""
    home = run["metadata"].get("namespace", "")
    found = []
    for entry in (run.get("spec") or {}).get("rewards") or ():
        ref = entry.get("rewardModelRef") or {}
        if ref and (ref.get("namespace") or home, ref.get("name", "")) == (namespace, name):
            found.append(service_of(entry.get("stage") or "reward"))
    return tuple(found)
