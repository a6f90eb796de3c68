"""What a simulated run is made of: load, roles, start-ups, reclaims, all drawn from one seed. Knows no scaler.

Every draw belongs to a thing, not to a moment: the length of the k-th admitted group, the start-up of the k-th
replica of a role, the victims of the k-th reclaim. So all scalers meet the same run (common random numbers).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np

from orchestrator.planning.spec import Auto, PipelineSpec, RoleSpec

Timeline = tuple[tuple[float, float], ...]
"""Steps (from this second on, this value), the first at 0."""

DRAWS = 4096
"""Draws of each kind; a run that needs more goes round again."""


def value_at(timeline: Timeline, now: float) -> float:
    """The value that holds at `now`."""
    return timeline[bisect.bisect_right(timeline, (now, float("inf"))) - 1][1]


def mean_over(timeline: Timeline, start: float, end: float) -> float:
    """The mean of the value over [start, end)."""
    total = 0.0
    for index, (at, value) in enumerate(timeline):
        until = timeline[index + 1][0] if index + 1 < len(timeline) else end
        total += value * max(0.0, min(until, end) - max(at, start))
    return total / (end - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleModel:
    """One role as it truly is. Seconds throughout."""

    name: str
    slots: int
    service_seconds: float
    """Of a group of mean length, on one slot."""
    fixed_share: float = 0.0
    """Part of the service that does not grow with the group's length."""
    price: float = 1.0
    most: int = 40
    """The pool's limit."""
    provision: tuple[float, float] = (60.0, 150.0)
    """Until the node is there, from and to; not billed."""
    load: tuple[float, float] = (60.0, 150.0)
    """Image and model, from and to; billed."""
    factor: Timeline = ((0.0, 1.0),)
    """Times the service: a swapped model, longer answers."""


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The cloud takes nodes of a role's pool: the i-th oldest replica goes if `draws[i] < share`."""

    at: float
    role: str
    share: float
    draws: tuple[float, ...]

    def lost(self, replicas: int) -> int:
        """How many of so many go."""
        return sum(draw < self.share for draw in self.draws[:replicas])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run of `seconds`, of which the first `warm_seconds` are not measured."""

    name: str
    seed: int
    seconds: float
    warm_seconds: float = 1200.0
    roles: tuple[RoleModel, ...]
    batch_groups: int = 64
    max_staleness: int = 8
    learner_price: float = 8.0
    step_seconds: Timeline = ((0.0, 60.0),)
    step_noise: float = 0.03
    """Relative standard deviation of a step."""
    length_sigma: float = 0.5
    """Of the logarithm of a group's length."""
    length_most: float = 2.5
    """The longest group over the mean one: max_new_tokens."""
    slow_share: float = 0.03
    slow_factor: float = 1.5
    """A slow node takes this many times as long."""
    reclaims: tuple[Reclaim, ...] = ()
    blackouts: tuple[tuple[float, float], ...] = ()
    """From and to: every scrape in between is lost."""
    tick_seconds: float = 15.0
    """Scrape and decision; a scaler sees the scrape of the tick before."""
    drain_seconds: float = 10.0
    handback_seconds: float = 2.0
    """Work that a handed-back group costs again: the prefill."""
    initial: dict[str, int] = field(default_factory=dict)

    def lengths(self) -> list[float]:
        """Lengths of admitted groups over the mean one, by admission number modulo their count."""
        draws = np.random.default_rng((self.seed, 1)).lognormal(0.0, self.length_sigma, 4 * DRAWS)
        clipped = np.minimum(draws / draws.mean(), self.length_most)
        for _ in range(20):
            clipped = np.minimum(clipped / clipped.mean(), self.length_most)
        return [float(length) for length in clipped]

    def step_factors(self) -> list[float]:
        """Of the learner's steps, by number."""
        draws = np.random.default_rng((self.seed, 2)).normal(1.0, self.step_noise, DRAWS)
        return [float(draw) for draw in np.clip(draws, 0.8, 1.5)]

    def starts(self, index: int) -> list[tuple[float, float, bool]]:
        """(provision seconds, load seconds, slow node) of the replicas of role `index`, by order."""
        role = self.roles[index]
        generator = np.random.default_rng((self.seed, 3, index))
        provision = generator.uniform(*role.provision, DRAWS)
        load = generator.uniform(*role.load, DRAWS)
        slow = generator.random(DRAWS) < self.slow_share
        return list(zip(provision.tolist(), load.tolist(), slow.tolist(), strict=True))

    def demand(self, now: float) -> float:
        """Groups/s that the learner can take."""
        return self.batch_groups / value_at(self.step_seconds, now)

    def needed(self, role: RoleModel, now: float) -> float:
        """Replicas of a role that the learner keeps busy at `now`, as a fraction."""
        return self.demand(now) * role.service_seconds * value_at(role.factor, now) / role.slots

    def spec(self, *, minimum: int = 1) -> PipelineSpec:
        """The run as the planner is told it: prices and slots; no speed, no step time, no time of a start."""
        return PipelineSpec(
            roles=tuple(
                RoleSpec(
                    name=role.name,
                    scaling=Auto(minimum, role.most),
                    price=role.price,
                    slots=role.slots,
                )
                for role in self.roles
            ),
            batch_groups=self.batch_groups,
            max_staleness=self.max_staleness,
            learner_price=self.learner_price,
        )
