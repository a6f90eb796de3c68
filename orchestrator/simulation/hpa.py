"""The Horizontal Pod Autoscaler and KEDA by their published algorithms, as scalers of the simulator.

Sources: kubernetes pkg/controller/podautoscaler (replica_calculator.go: GetResourceReplicas and
GetExternalPerPodMetricReplicas; horizontal.go: stabilizeRecommendationWithBehaviors and
convertDesiredReplicasWithBehaviorRate), pkg/apis/autoscaling/v2 defaults; keda.sh ScaledObject and redis-streams
scaler. Defaults there: sync 15 s, tolerance 0.1, scale-up at once by max(100 %, 4 pods) in 15 s, scale-down
stabilised over 300 s by 100 % in 15 s, CPU target 80 %; KEDA: pollingInterval 30 s, cooldownPeriod 300 s,
minReplicaCount 0, streamLength 5, between 1 and maximum the HPA on an external metric of type AverageValue.

Made as strong as the documents allow: "CPU" is the exact busy share of a replica's slots (a GPU pod's real CPU use
says less), ready pods are counted as they are, every pod on its way counts as using nothing until it is ready.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.planning.actions import Scale
from orchestrator.simulation.engine import Order, Scrape, View
from orchestrator.simulation.pools import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaSettings:
    """One HPA object for one role. `target` is a busy share (cpu) or groups per replica (the others)."""

    metric: Literal["cpu", "waiting", "stream"]
    target: float
    stabilisation_seconds: float = 300.0
    minimum: int = 1
    tolerance: float = 0.1
    pods_step: int = 4
    percent_step: float = 1.0
    period_seconds: float = 15.0
    cooldown_seconds: float | None = None
    """KEDA's, from 1 to 0; None: a plain HPA, which never goes below its minimum."""
    polling_seconds: float = 30.0
    """KEDA's, from 0 to 1."""


@dataclass(slots=True)
class _Hpa:
    """One HPA's state."""

    settings: HpaSettings
    recommended: deque[tuple[float, int]] = field(default_factory=deque)
    raised: deque[tuple[float, int]] = field(default_factory=deque)
    lowered: deque[tuple[float, int]] = field(default_factory=deque)
    active_at: float = 0.0
    polled_at: float = -math.inf

    def desired(self, pool: Pool, scrape: Scrape, now: float) -> int:
        """The number after metric, stabilisation and rate limits."""
        name, settings, current = pool.model.name, self.settings, pool.desired
        if settings.cooldown_seconds is not None:
            switched = self._keda_switch(pool, scrape, now)
            if switched is not None:
                return switched
        if settings.metric == "cpu":
            proposed = cpu_replicas(scrape.utilisation[name], settings, current, pool.ready())
        else:
            level = (
                scrape.waiting[name] if settings.metric == "waiting" else scrape.roles[name].backlog_groups
            )
            proposed = per_pod_replicas(level, settings, current)
        stabilised = self._stabilised(proposed, current, now)
        return self._limited(stabilised, current, pool.model.most, now)

    def _keda_switch(self, pool: Pool, scrape: Scrape, now: float) -> int | None:
        """KEDA's own part: between 0 and 1. None: it leaves the number to the HPA."""
        settings = self.settings
        level = scrape.roles[pool.model.name].backlog_groups
        if now - self.polled_at >= settings.polling_seconds:
            self.polled_at = now
            if level > 0:
                self.active_at = now
                if pool.desired == 0:
                    return max(1, settings.minimum)
            elif settings.minimum == 0 and now - self.active_at >= (settings.cooldown_seconds or 0.0):
                return 0
        return 0 if pool.desired == 0 else None

    def _stabilised(self, proposed: int, current: int, now: float) -> int:
        """Down: the highest recommendation of the window. Up: at once (window 0)."""
        window = self.settings.stabilisation_seconds
        while self.recommended and self.recommended[0][0] <= now - window:
            self.recommended.popleft()
        best = proposed
        if proposed < current:
            # What was recommended once and never reached (rate limits, the maximum) holds the number, never raises it.
            best = min(current, max(proposed, max((count for _, count in self.recommended), default=0)))
        self.recommended.append((now, proposed))
        return best

    def _limited(self, wanted: int, current: int, most: int, now: float) -> int:
        settings = self.settings
        least = max(1, settings.minimum)
        if wanted > current:
            since = now - settings.period_seconds
            before = current - _recent(self.raised, since) + _recent(self.lowered, since)
            limit = max(before + settings.pods_step, math.ceil(before * (1 + settings.percent_step)), current)
            number = min(wanted, limit, most)
            self.raised.append((now, number - current))
        elif wanted < current:
            # 100 % in 15 s: only the minimum limits it.
            number = max(wanted, least)
            self.lowered.append((now, current - number))
        else:
            number = current
        return min(max(number, least), most)


def cpu_replicas(utilisation: float, settings: HpaSettings, current: int, ready: int) -> int:
    """GetResourceReplicas: pods that are not ready are left out, or count as idle where that calls for less."""
    if ready == 0:
        return current
    ratio = utilisation / settings.target
    unready = max(0, current - ready)
    if not unready or ratio <= 1:
        return current if abs(1 - ratio) <= settings.tolerance else math.ceil(ratio * ready - 1e-9)
    whole = ratio * ready / (ready + unready)
    if abs(1 - whole) <= settings.tolerance or whole < 1:
        return current
    return max(current, math.ceil(whole * (ready + unready) - 1e-9))


def per_pod_replicas(level: float, settings: HpaSettings, current: int) -> int:
    """GetExternalPerPodMetricReplicas: the metric over the target per pod, unless within the tolerance."""
    if current > 0 and abs(1 - level / (settings.target * current)) <= settings.tolerance:
        return current
    return math.ceil(level / settings.target - 1e-9)


def _recent(changes: deque[tuple[float, int]], since: float) -> int:
    while changes and changes[0][0] <= since:
        changes.popleft()
    return sum(change for _, change in changes)


class HpaScaler:
    """One HPA (or ScaledObject) per role. `settings` maps role names to theirs."""

    def __init__(self, name: str, settings: Mapping[str, HpaSettings]) -> None:
        self.name = name
        self._hpas = {role: _Hpa(one) for role, one in settings.items()}

    def decide(self, view: View, now: float) -> Sequence[Order]:
        """See Scaler. Without metrics an HPA stands still too."""
        if view.scrape is None:
            return []
        orders = []
        for role, hpa in self._hpas.items():
            pool = view.pools[role]
            number = hpa.desired(pool, view.scrape, now)
            if number != pool.desired:
                orders.append(Scale(role, number, self.name))
        return orders
