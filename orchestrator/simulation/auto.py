"""The planner as a scaler of the simulator: builds what it observes, hands on its orders. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.planning.actions import Remember
from orchestrator.planning.observed import Memory, Observed, Replica, ReplicaState, RoleObserved
from orchestrator.planning.scaling import plan
from orchestrator.planning.spec import PipelineSpec
from orchestrator.simulation.engine import Order, View
from orchestrator.simulation.pools import Pool, SimReplica


class AutoScaler:
    """`Auto` for every role. `spec` tells prices and bounds; speeds it has to learn."""

    name = "auto"

    def __init__(self, spec: PipelineSpec) -> None:
        self._spec = spec
        self._memory = Memory()

    def decide(self, view: View, now: float) -> Sequence[Order]:
        """See Scaler."""
        scrape = view.scrape
        observed = Observed(
            at=now if scrape is None else scrape.at,
            roles={
                name: _role(pool, now, None if scrape is None else scrape.roles.get(name))
                for name, pool in view.pools.items()
            },
            learner=None if scrape is None else scrape.learner,
            memory=self._memory,
        )
        orders: list[Order] = []
        for action in plan(self._spec, observed, now):
            if isinstance(action, Remember):
                self._memory = action.memory
            else:
                orders.append(action)
        return orders


def _role(pool: Pool, now: float, metrics: object) -> RoleObserved:
    return RoleObserved(
        desired=pool.desired,
        replicas=tuple(
            Replica(one.name, one.state, len(one.held), _pace(one), now - one.ordered_at)
            for one in pool.replicas
        ),
        metrics=metrics,  # type: ignore[arg-type]
        startup_seconds=sum(pool.startups) / len(pool.startups) if pool.startups else None,
    )


def _pace(replica: SimReplica) -> float:
    """What would have been measured by now: nothing of a replica that never served."""
    return 1.0 if replica.state is ReplicaState.STARTING else 1 / replica.factor
