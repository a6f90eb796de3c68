"""A role's Deployment on its pool of nodes: replicas that start, serve, drain and are taken. Knows no group's way.

Which replica goes when the number falls follows the ReplicaSet controller (kubernetes pkg/controller,
ActivePodsWithRanks): not ready before ready, lower deletion cost first, then the youngest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.planning.observed import ReplicaState
from orchestrator.simulation.scenario import RoleModel


@dataclass(slots=True, eq=False)
class SimReplica:
    """One pod. `held`: the groups on its slots and when each is done."""

    name: str
    ordered_at: float
    billed_from: float
    ready_at: float
    factor: float
    """Times the service: above 1 on a slow node."""
    state: ReplicaState = ReplicaState.STARTING
    held: dict[int, float] = field(default_factory=dict)
    gone: bool = False


class Pool:
    """The replicas of one role. `billed_seconds` counts from `measured_from` on."""

    def __init__(self, model: RoleModel, starts: list[tuple[float, float, bool]], slow_factor: float) -> None:
        self.model = model
        self.desired = 0
        self.replicas: list[SimReplica] = []
        """Without those that terminate, oldest first."""
        self.billed_seconds = 0.0
        self.startups: list[float] = []
        self.starts_made = 0
        self._starts = starts
        self._slow_factor = slow_factor

    def add(self, now: float, *, warm: bool = False) -> SimReplica:
        """Order one replica. `warm`: it serves at once (the replicas that a run begins with)."""
        number = self.starts_made
        self.starts_made += 1
        provision, load, slow = self._starts[number % len(self._starts)]
        replica = SimReplica(
            name=f"{self.model.name}-{number}",
            ordered_at=now,
            billed_from=now if warm else now + provision,
            ready_at=now if warm else now + provision + load,
            factor=self._slow_factor if slow and not warm else 1.0,
            state=ReplicaState.READY if warm else ReplicaState.STARTING,
        )
        self.replicas.append(replica)
        return replica

    def serve(self, replica: SimReplica) -> None:
        """Its model is loaded."""
        replica.state = ReplicaState.READY
        self.startups = [*self.startups[-7:], replica.ready_at - replica.ordered_at]

    def remove(self, replica: SimReplica, until: float, measured_from: float) -> None:
        """It terminates; its node is billed until `until`."""
        replica.gone = True
        self.replicas.remove(replica)
        self.bill(replica, until, measured_from)

    def bill(self, replica: SimReplica, until: float, measured_from: float) -> None:
        """Count what a replica cost up to `until`."""
        self.billed_seconds += max(0.0, until - max(replica.billed_from, measured_from))

    def surplus(self, named: tuple[str, ...]) -> list[SimReplica]:
        """Who goes now that there are more than desired."""
        count = len(self.replicas) - self.desired
        if count <= 0:
            return []
        ranked = sorted(
            self.replicas,
            key=lambda one: (one.state is not ReplicaState.STARTING, one.name not in named, -one.ordered_at),
        )
        return ranked[:count]

    def ready(self) -> int:
        """Replicas that pass their readiness probe."""
        return sum(one.state is ReplicaState.READY for one in self.replicas)
