"""The event loop: groups through the stages, the learner's steps, replicas that come and go. Knows no policy.

    admit ──▶ [policy] ──▶ [reference] ──▶ [reward] ──▶ arrived ──▶ step of the learner ──▶ admit as many anew
               queue of groups, oldest hand-backs first; each replica has `slots` that work on a group each

Events are group completions, replicas that become ready, reclaims, steps, and every `tick_seconds` a scrape and a
decision on the scrape before. A replica that goes hands its groups back with what they have; the prefill is paid
again. The learner takes the oldest arrived groups and waits for an older one only if that would be too stale at
the next step (the rule of the real learner).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.planning.actions import Drain, Scale, Undrain
from orchestrator.planning.observed import LearnerObserved, ReplicaState, RoleMetrics
from orchestrator.simulation.pools import Pool, SimReplica
from orchestrator.simulation.scenario import Reclaim, Scenario, value_at

Order = Scale | Drain | Undrain

_TICK, _READY, _STEP, _RECLAIM, _DONE = range(5)


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one scrape saw. None in it: lost."""

    at: float
    roles: dict[str, RoleMetrics]
    waiting: dict[str, int]
    """Groups of a stage that nobody works on (lag)."""
    utilisation: dict[str, float]
    """Busy share of the slots of ready replicas over the interval."""
    learner: LearnerObserved | None


class View(Protocol):
    """What a scaler may look at: the pods as they are, the metrics of the tick before (None: lost)."""

    pools: dict[str, Pool]
    scrape: Scrape | None


class Scaler(Protocol):
    """A policy under test."""

    name: str

    def decide(self, view: View, now: float) -> Sequence[Order]:
        """What to do at this tick."""
        ...


@dataclass(slots=True)
class Result:
    """What came of a run, over its measured part. Series have one value a tick, over the whole run."""

    scenario: str
    scaler: str
    trained_groups: int = 0
    step_capacity: float = 0.0
    """Groups that the learner would have trained without ever waiting."""
    waited_seconds: float = 0.0
    measured_seconds: float = 0.0
    replica_hours: dict[str, float] = field(default_factory=dict)
    roles_cost: float = 0.0
    """Price times hours of all replicas."""
    learner_cost: float = 0.0
    orders: int = 0
    starts: int = 0
    times: list[float] = field(default_factory=list)
    replicas: dict[str, list[int]] = field(default_factory=dict)
    ready: dict[str, list[int]] = field(default_factory=dict)
    backlog: dict[str, list[int]] = field(default_factory=dict)
    idle: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)

    @property
    def idle_share(self) -> float:
        """Of the measured time, how long the learner waited for groups."""
        return self.waited_seconds / self.measured_seconds

    @property
    def cost_per_thousand(self) -> float:
        """Price-weighted hours of all scaled roles per 1,000 trained groups."""
        return 1000 * self.roles_cost / max(1, self.trained_groups)

    @property
    def whole_cost_per_thousand(self) -> float:
        """The same with the learner."""
        return 1000 * (self.roles_cost + self.learner_cost) / max(1, self.trained_groups)


@dataclass(slots=True)
class _Stage:
    index: int
    pool: Pool
    queue: deque[int] = field(default_factory=deque)
    free: deque[SimReplica] = field(default_factory=deque)
    """One entry for each free slot; entries of replicas that no longer serve are dropped when met."""
    working: int = 0
    busy_since: float = 0.0
    busy_seconds: float = 0.0
    capacity_since: float = 0.0
    capacity_seconds: float = 0.0
    ready_slots: int = 0
    completed: int = 0


class Simulation:
    """One scenario under one scaler."""

    def __init__(self, scenario: Scenario, scaler: Scaler, *, series: bool = False) -> None:
        self.scenario = scenario
        self.scrape: Scrape | None = None
        self._scaler = scaler
        self._series = series
        self._events: list[tuple[float, int, int, int, object]] = []
        self._sequence = 0
        self._lengths = scenario.lengths()
        self._step_factors = scenario.step_factors()
        self._stages = [
            _Stage(index, Pool(role, scenario.starts(index), scenario.slow_factor))
            for index, role in enumerate(scenario.roles)
        ]
        self.pools = {stage.pool.model.name: stage.pool for stage in self._stages}
        self._remaining: dict[int, float] = {}
        """Seconds that a handed-back group still needs, where it is not its stage's full service."""
        self._admitted = 0
        self._admitted_step: list[int] = []
        self._arrived = bytearray()
        self._oldest = 0
        """The oldest admission number that has not arrived."""
        self._ready: list[int] = []
        self._steps = 0
        self._training = False
        self._idle_since = 0.0
        self._waited = 0.0
        self._step_seconds: list[float] = []
        self._trained_in_tick = 0
        self._latest: Scrape | None = None
        self._waited_at_tick = 0.0
        self._result = Result(scenario.name, scaler.name)

    # -------------------------------------------------------------- running

    def run(self) -> Result:
        """The whole run."""
        self._begin()
        end, events = self.scenario.seconds, self._events
        while events:
            now, _, kind, index, what = heapq.heappop(events)
            if now > end:
                break
            if kind == _DONE:
                self._done(now, index, what)  # type: ignore[arg-type]
            elif kind == _TICK:
                self._tick(now)
            elif kind == _STEP:
                self._step_ended(now, what)  # type: ignore[arg-type]
            elif kind == _READY:
                self._replica_ready(now, self._stages[index], what)  # type: ignore[arg-type]
            else:
                self._reclaim(now, what)  # type: ignore[arg-type]
        return self._finish(end)

    def _begin(self) -> None:
        for stage in self._stages:
            count = self.scenario.initial.get(stage.pool.model.name, 1)
            stage.pool.desired = count
            for _ in range(count):
                replica = stage.pool.add(0.0, warm=True)
                self._open_slots(0.0, stage, replica)
        for reclaim in self.scenario.reclaims:
            self._push(reclaim.at, _RECLAIM, 0, reclaim)
        self._push(self.scenario.tick_seconds, _TICK, 0, None)
        self._admit(0.0, (self.scenario.max_staleness + 1) * self.scenario.batch_groups)

    def _push(self, at: float, kind: int, index: int, what: object) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at, self._sequence, kind, index, what))

    def _finish(self, end: float) -> Result:
        scenario, result = self.scenario, self._result
        warm = scenario.warm_seconds
        for stage in self._stages:
            for replica in stage.pool.replicas:
                stage.pool.bill(replica, end, warm)
            hours = stage.pool.billed_seconds / 3600
            result.replica_hours[stage.pool.model.name] = hours
            result.roles_cost += hours * stage.pool.model.price
            result.starts += stage.pool.starts_made
        if not self._training:
            self._count_wait(end)
        result.waited_seconds = self._waited
        result.measured_seconds = end - warm
        result.learner_cost = scenario.learner_price * (end - warm) / 3600
        return result

    # -------------------------------------------------------------- groups

    def _admit(self, now: float, count: int) -> None:
        first = self._stages[0]
        for _ in range(count):
            first.queue.append(self._admitted)
            self._admitted += 1
        self._admitted_step += [self._steps] * count
        self._arrived += bytes(count)
        self._assign(now, first)

    def _assign(self, now: float, stage: _Stage) -> None:
        """Waiting groups onto free slots."""
        queue, free = stage.queue, stage.free
        if not queue or not free:
            return
        model = stage.pool.model
        seconds = model.service_seconds * value_at(model.factor, now)
        fixed = model.fixed_share
        began = 0
        while queue and free:
            replica = free.popleft()
            if replica.state is not ReplicaState.READY or replica.gone:
                continue
            group = queue.popleft()
            service = self._remaining.pop(group, None) if self._remaining else None
            if service is None:
                service = seconds * (fixed + (1 - fixed) * self._lengths[group % len(self._lengths)])
            done = now + service * replica.factor
            replica.held[group] = done
            self._sequence += 1
            heapq.heappush(self._events, (done, self._sequence, _DONE, stage.index, (replica, group)))
            began += 1
        self._working(now, stage, began)

    def _working(self, now: float, stage: _Stage, change: int) -> None:
        stage.busy_seconds += stage.working * (now - stage.busy_since)
        stage.busy_since = now
        stage.working += change

    def _done(self, now: float, index: int, what: tuple[SimReplica, int]) -> None:
        replica, group = what
        if replica.held.get(group) != now:
            return  # handed back before
        del replica.held[group]
        stage = self._stages[index]
        stage.busy_seconds += stage.working * (now - stage.busy_since)
        stage.busy_since = now
        stage.working -= 1
        stage.completed += 1
        if replica.state is ReplicaState.READY:
            stage.free.append(replica)
            if stage.queue:
                self._assign(now, stage)
        if index + 1 < len(self._stages):
            following = self._stages[index + 1]
            following.queue.append(group)
            if following.free:
                self._assign(now, following)
        else:
            self._arrive(now, group)

    def _arrive(self, now: float, group: int) -> None:
        self._arrived[group] = 1
        while self._oldest < self._admitted and self._arrived[self._oldest]:
            self._oldest += 1
        heapq.heappush(self._ready, group)
        if not self._training:
            self._try_step(now)

    # -------------------------------------------------------------- the learner

    def _try_step(self, now: float) -> None:
        scenario = self.scenario
        if len(self._ready) < scenario.batch_groups:
            return
        oldest = self._oldest
        if oldest < self._admitted and self._admitted_step[oldest] + scenario.max_staleness <= self._steps:
            # It would be too stale at the next step: wait, unless it arrives with this batch anyway.
            return
        for _ in range(scenario.batch_groups):
            heapq.heappop(self._ready)
        seconds = (
            value_at(scenario.step_seconds, now) * self._step_factors[self._steps % len(self._step_factors)]
        )
        self._count_wait(now)
        self._training = True
        self._push(now + seconds, _STEP, 0, seconds)

    def _count_wait(self, now: float) -> None:
        self._waited += max(0.0, now - max(self._idle_since, self.scenario.warm_seconds))

    def _step_ended(self, now: float, seconds: float) -> None:
        batch = self.scenario.batch_groups
        self._steps += 1
        self._training = False
        self._idle_since = now
        self._step_seconds.append(seconds)
        self._trained_in_tick += batch
        if now >= self.scenario.warm_seconds:
            self._result.trained_groups += batch
        self._admit(now, batch)
        self._try_step(now)

    # -------------------------------------------------------------- replicas

    def _open_slots(self, now: float, stage: _Stage, replica: SimReplica) -> None:
        free = stage.pool.model.slots - len(replica.held)
        stage.free.extend([replica] * free)
        self._capacity(now, stage, stage.pool.model.slots)
        self._assign(now, stage)

    def _capacity(self, now: float, stage: _Stage, change: int) -> None:
        stage.capacity_seconds += stage.ready_slots * (now - stage.capacity_since)
        stage.capacity_since = now
        stage.ready_slots += change

    def _replica_ready(self, now: float, stage: _Stage, replica: SimReplica) -> None:
        if replica.gone or replica.state is not ReplicaState.STARTING:
            return
        stage.pool.serve(replica)
        self._open_slots(now, stage, replica)

    def _hand_back(self, now: float, stage: _Stage, replica: SimReplica) -> None:
        """Its groups go to the front of the queue with what is left of them."""
        for group, done in sorted(replica.held.items(), reverse=True):
            self._remaining[group] = (done - now) / replica.factor + self.scenario.handback_seconds
            stage.queue.appendleft(group)
        self._working(now, stage, -len(replica.held))
        replica.held.clear()

    def _stop_serving(self, now: float, stage: _Stage, replica: SimReplica, state: ReplicaState) -> None:
        if replica.state is ReplicaState.READY:
            self._capacity(now, stage, -stage.pool.model.slots)
            stage.free = deque(one for one in stage.free if one is not replica)
        replica.state = state
        self._hand_back(now, stage, replica)

    def _terminate(self, now: float, stage: _Stage, replica: SimReplica) -> None:
        holds = bool(replica.held)
        self._stop_serving(now, stage, replica, ReplicaState.DRAINING)
        until = now + (self.scenario.drain_seconds if holds else 0.0)
        stage.pool.remove(replica, until, self.scenario.warm_seconds)
        self._assign(now, stage)

    def _reconcile(self, now: float, stage: _Stage, named: tuple[str, ...] = ()) -> None:
        """What the Deployment's controllers do: as many pods as desired."""
        pool = stage.pool
        for replica in pool.surplus(named):
            self._terminate(now, stage, replica)
        while len(pool.replicas) < pool.desired:
            replica = pool.add(now)
            self._push(replica.ready_at, _READY, stage.index, replica)

    def _reclaim(self, now: float, reclaim: Reclaim) -> None:
        """Victims get their notice, drain within it, and the ReplicaSet orders others at once."""
        stage = next(one for one in self._stages if one.pool.model.name == reclaim.role)
        taken = [
            replica
            for replica, draw in zip(stage.pool.replicas, reclaim.draws, strict=False)
            if draw < reclaim.share and replica.billed_from <= now
        ]
        for replica in taken:
            self._terminate(now, stage, replica)
        self._reconcile(now, stage)

    # -------------------------------------------------------------- ticks

    def _tick(self, now: float) -> None:
        self.scrape, self._latest = self._latest, self._scrape(now)
        for order in self._scaler.decide(self, now):
            self._obey(now, order)
        if self._series:
            self._note(now)
        self._push(now + self.scenario.tick_seconds, _TICK, 0, None)

    def _obey(self, now: float, order: Order) -> None:
        stage = next(one for one in self._stages if one.pool.model.name == order.role)
        self._result.orders += 1
        if isinstance(order, Scale):
            stage.pool.desired = max(0, min(order.replicas, stage.pool.model.most))
            self._reconcile(now, stage, order.remove)
            return
        replica = next((one for one in stage.pool.replicas if one.name == order.replica), None)
        if replica is None:
            return
        if isinstance(order, Drain):
            self._stop_serving(now, stage, replica, ReplicaState.DRAINING)
            self._assign(now, stage)
        elif replica.state is ReplicaState.DRAINING:
            replica.state = ReplicaState.READY
            self._open_slots(now, stage, replica)

    def _scrape(self, now: float) -> Scrape | None:
        if any(start <= now < end for start, end in self.scenario.blackouts):
            return None
        roles, waiting, utilisation = {}, {}, {}
        for stage in self._stages:
            self._working(now, stage, 0)
            self._capacity(now, stage, 0)
            name = stage.pool.model.name
            roles[name] = RoleMetrics(
                busy_seconds=stage.busy_seconds,
                completed_groups=stage.completed,
                backlog_groups=len(stage.queue) + stage.working,
            )
            waiting[name] = len(stage.queue)
            utilisation[name] = stage.busy_seconds / stage.capacity_seconds if stage.capacity_seconds else 0.0
            stage.busy_seconds = stage.capacity_seconds = 0.0
            stage.completed = 0
        waited = self._waited + (0.0 if self._training else max(0.0, now - max(self._idle_since, 0.0)))
        learner = LearnerObserved(
            step_seconds=tuple(self._step_seconds),
            trained_groups=self._trained_in_tick,
            ready_groups=len(self._ready),
            waited_seconds=max(0.0, waited - self._waited_at_tick),
        )
        self._waited_at_tick = waited
        self._step_seconds.clear()
        self._trained_in_tick = 0
        return Scrape(now, roles, waiting, utilisation, learner)

    def _note(self, now: float) -> None:
        result = self._result
        result.times.append(now)
        rate = 0.0
        for stage in self._stages:
            name = stage.pool.model.name
            result.replicas.setdefault(name, []).append(len(stage.pool.replicas))
            result.ready.setdefault(name, []).append(stage.pool.ready())
            result.backlog.setdefault(name, []).append(len(stage.queue) + stage.working)
            rate += stage.pool.model.price * sum(one.billed_from <= now for one in stage.pool.replicas)
        result.cost.append(rate)
        learner = self._latest.learner if self._latest else None
        share = learner.waited_seconds / self.scenario.tick_seconds if learner else 0.0
        result.idle.append(min(1.0, share))
