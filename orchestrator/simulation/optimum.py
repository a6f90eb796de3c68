"""The clairvoyant optimum: the least that any schedule of whole replicas could have cost. Knows the run beforehand.

For one run and the groups T that a scaler trained in it, the cheapest price-weighted replica hours of any schedule
that trains at least T in the same time, with the learner's speed, all service times and all reclaims known from the
start. A lower bound, computed by an exact dynamic programme on a relaxed model; every relaxation helps the optimum:

- work flows as a fluid at the role's true mean speed: no queueing, no slow node, no hand-back; the mean length is that
  of the cheapest stretch of groups that the run can have trained;
- the roles are solved apart: each may have its own best moments to leave the learner waiting;
- a role may work ahead of the learner by all of the staleness window but the batch in training and what Little's law
  has in work at the slowest load, as if every other role needed no more than its service time;
- a step that began before the measured part counts as trained in it, though its groups were made before: a batch less;
- it starts with any number of replicas and a full stock, whatever that cost before; what of the stock is gone at the
  end counts as not trained, since the next hour would have to make it up;
- it orders replicas so that they serve exactly when wanted. As in the simulator, a node is billed while image and
  model load; the wait for the node is free. Reclaims take the replicas that the simulator would have taken, and the
  next start is billed.

Per role, with n replicas and a stock of b groups, in bins of `BIN` seconds:

    V_k(n, b) = min over m of  load_seconds * max(0, m - kept(n)) + m * BIN + mu * unmet + V_{k+1}(m, b')

`unmet` are groups that the learner wanted and did not get. At least T must be trained, so unmet <= U = wanted - T;
mu >= 0 is the multiplier of that constraint and max over mu of (V_0 - mu * U) is a lower bound by weak duality. The
stock is a grid of `LEVELS` with linear interpolation in between, and replicas change between bins alone: the two
approximations that are not relaxations. With 65 levels, bins of 20 s or both, the bound of eight runs (four shapes)
moved by 0.15 % at most.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.simulation.engine import Result
from orchestrator.simulation.scenario import RoleModel, Scenario, mean_over

BIN = 60.0
LEVELS = 17
MULTIPLIERS = (0.0, *(1 + 0.05 * index for index in range(10)), *(1.6 * 1.3**index for index in range(13)))
"""Tried values of mu, in replica seconds that a group takes. A gap between them only weakens the bound."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Optimum:
    """Lower bounds for one run: price-weighted replica hours, and per 1,000 groups trained."""

    roles_cost: float
    trained_groups: int

    @property
    def cost_per_thousand(self) -> float:
        """Comparable with `Result.cost_per_thousand`."""
        return 1000 * self.roles_cost / max(1, self.trained_groups)


def clairvoyant(scenario: Scenario, result: Result) -> Optimum:
    """The optimum for the groups that `result` trained in `scenario`."""
    edges = np.arange(scenario.warm_seconds, scenario.seconds + 1e-9, BIN)
    wanted = np.array(
        [_groups_wanted(scenario, start, end) for start, end in itertools.pairwise(edges.tolist())]
    )
    made = result.trained_groups - scenario.batch_groups
    unmet = max(0.0, float(wanted.sum()) - made)
    length = _mean_length(scenario, made)
    cost = sum(
        role.price * _role_seconds(scenario, _of_length(role, length), edges, wanted, unmet)
        for role in scenario.roles
    )
    return Optimum(cost / 3600, result.trained_groups)


def _groups_wanted(scenario: Scenario, start: float, end: float) -> float:
    """Groups that a learner which never waits trains in [start, end)."""
    rates = tuple((at, scenario.batch_groups / seconds) for at, seconds in scenario.step_seconds)
    return mean_over(rates, start, end) * (end - start)


def _mean_length(scenario: Scenario, groups: int) -> float:
    """Of the cheapest stretch of so many groups that begins where the measured part can have begun."""
    lengths = np.array(scenario.lengths())
    window = (scenario.max_staleness + 1) * scenario.batch_groups
    starts = math.ceil(_groups_wanted(scenario, 0.0, scenario.warm_seconds)) + window
    count = max(1, groups)
    sums = np.cumsum(np.concatenate([[0.0], np.resize(lengths, starts + count)]))
    return float((sums[count:] - sums[:-count]).min() / count)


def _of_length(role: RoleModel, length: float) -> RoleModel:
    """The role where groups have this mean length."""
    return replace(
        role, service_seconds=role.service_seconds * (role.fixed_share + (1 - role.fixed_share) * length)
    )


def _stock(scenario: Scenario, wanted: Floats) -> float:
    """Groups by which a role may be ahead: the window without what is in training and in work."""
    rate = float(wanted.min()) / BIN
    work = sum(role.service_seconds * min(value for _, value in role.factor) for role in scenario.roles)
    window = (scenario.max_staleness + 1) * scenario.batch_groups
    return max(1.0, window - scenario.batch_groups - rate * work)


def _role_seconds(scenario: Scenario, role: RoleModel, edges: Floats, wanted: Floats, unmet: float) -> float:
    """Replica seconds of one role, a lower bound."""
    rates = np.array(
        [
            role.slots / (role.service_seconds * mean_over(role.factor, start, end))
            for start, end in itertools.pairwise(edges.tolist())
        ]
    )
    most = min(role.most, math.ceil(float((wanted / BIN / rates).max())) + 2)
    kept = _kept(scenario, role, edges, most)
    multipliers = np.array(MULTIPLIERS) / float(rates.mean())
    load_seconds = sum(role.load) / 2
    values = _backwards(rates, wanted, kept, most, multipliers, load_seconds, _stock(scenario, wanted))
    first = values[:, :, -1].min(axis=1)
    return float((first - multipliers * unmet).max())


def _kept(scenario: Scenario, role: RoleModel, edges: Floats, most: int) -> NDArray[np.int64]:
    """[bins, most + 1]: of n replicas at the start of a bin, how many the cloud leaves."""
    kept = np.tile(np.arange(most + 1), (len(edges) - 1, 1))
    for reclaim in scenario.reclaims:
        index = int(np.searchsorted(edges, reclaim.at, side="right")) - 1
        if reclaim.role == role.name and 0 <= index < len(edges) - 1:
            kept[index] = [max(0, left - reclaim.lost(left)) for left in kept[index].tolist()]
    return kept


def _backwards(
    rates: Floats,
    wanted: Floats,
    kept: NDArray[np.int64],
    most: int,
    multipliers: Floats,
    load_seconds: float,
    stock: float,
) -> Floats:
    """V_0 as [multipliers, replicas 0..most, stock levels]: any number may be there at the start."""
    levels = np.linspace(0.0, stock, LEVELS)
    counts = np.arange(most + 1)
    # Groups missing from the stock at the end were trained on credit.
    credit = multipliers[:, None, None] * (stock - levels)[None, None, :]
    value = np.broadcast_to(credit, (len(multipliers), most + 1, LEVELS)).copy()
    for index in range(len(rates) - 1, -1, -1):
        made = counts[:, None] * rates[index] * BIN
        after = levels[None, :] + made - wanted[index]
        lacking = np.maximum(0.0, -after)
        position = np.clip(after, 0.0, stock) * ((LEVELS - 1) / stock)
        low = np.minimum(position.astype(np.int64), LEVELS - 2)
        part = position - low
        rows = counts[:, None]
        following = value[:, rows, low] * (1 - part) + value[:, rows, low + 1] * part
        run = following + counts[None, :, None] * BIN + multipliers[:, None, None] * lacking
        value = _choose(run, kept[index], load_seconds)
    return value


def _choose(run: Floats, kept: NDArray[np.int64], load_seconds: float) -> Floats:
    """min over m of run[m] + load_seconds * max(0, m - kept(n)), for every n: two running minima."""
    counts = np.arange(run.shape[1])
    fewer = np.minimum.accumulate(run, axis=1)
    ordered = run + load_seconds * counts[None, :, None]
    more = np.minimum.accumulate(ordered[:, ::-1], axis=1)[:, ::-1] - load_seconds * counts[None, :, None]
    best: Floats = np.minimum(fewer, more)
    chosen: Floats = best[:, kept, :]
    return chosen
