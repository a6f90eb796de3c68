"""What all reconcilers work with: one Api behind the gate, the store, clocks, who is told. Holds, decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.insight import Insight, ServiceInsight
from orchestrator.cluster.control.store import Store
from orchestrator.cluster.operator.applier import Applier
from orchestrator.cluster.operator.events import Recorder
from orchestrator.cluster.operator.finaliser import Finaliser
from orchestrator.cluster.operator.insights import Insights
from orchestrator.cluster.render import RenderOptions


def wall_clock() -> datetime:
    """Now, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Handed to each reconciler."""

    api: Api
    """Behind the gate: it writes only while this replica leads."""
    store: Store
    applier: Applier
    finaliser: Finaliser
    recorder: Recorder
    insights: Insights[Insight]
    """Of runs."""
    service_insights: Insights[ServiceInsight]
    """Of reward models."""
    options: RenderOptions = field(default_factory=RenderOptions)
    now: Callable[[], datetime] = wall_clock
    clock: Callable[[], float] = time.monotonic
    """Seconds, never back."""
    status_seconds: float = 10.0
    """Between two writes of a status in which only figures differ."""
    kueue_unseen: Callable[[str], str] = lambda _namespace: ""
    """Why Workloads of this namespace are not known; empty: they are."""


def make_tools(api: Api, store: Store, identity: str, **more: object) -> Tools:
    """The usual ones around an Api and a store."""
    applier = Applier(api, store)
    return Tools(
        api=api,
        store=store,
        applier=applier,
        finaliser=Finaliser(api, store, applier),
        recorder=Recorder(api, identity),
        insights=Insights(Insight()),
        service_insights=Insights(ServiceInsight()),
        **more,  # type: ignore[arg-type]
    )
