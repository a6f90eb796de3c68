"""How tests of TrainingRuns begin and end."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import NotFound
from tests.integration.cluster.harness import Harness, eventually
from tests.unit.orchestrator.cluster.objects import RUN

ALL_SERVICES = {f"helpful-{name}" for name in ("policy", "reference", "reward")}
FINE = ("False", "AsExpected")
UNPLACED = ("True", "Unschedulable")


def start(harness: Harness, run: dict[str, Any] = RUN) -> None:
    """Submit the run, and reconcile until there is nothing more to write."""
    harness.submit(run)
    harness.settle()


def gone(harness: Harness) -> None:
    """Reconcile until the run is gone, then hold that nothing is left."""

    def ended() -> bool:
        harness.reconcile()
        return harness.find("TrainingRun", "helpful") is None

    eventually(ended)
    eventually(lambda: not harness.versions())
    with pytest.raises(NotFound):
        harness.get("Secret", "helpful-redis")
