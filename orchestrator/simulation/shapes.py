"""The load shapes of the benchmark and of `trimtab simulate`: which run a name and a seed stand for.

The base is a 7B-like pipeline: a policy on nodes of two GPUs, a reference on one, a reward model on a cheaper GPU.
A start takes 3 to 8 minutes for the policy: a GPU node, an image of 10 to 20 GB, the model.
Each seed draws its own speeds, step time, prices of start-up and moments of change from the ranges below, so that
nothing can be fitted to one set of numbers. Reclaims of spot nodes, slow nodes and start-up lags are in every shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from orchestrator.simulation.scenario import Reclaim, RoleModel, Scenario, Timeline, value_at

RECLAIM_EVERY_SECONDS = 5400.0
"""Mean time between reclaims on a pool."""
RECLAIM_SHARE = 0.12
"""Of a pool's nodes that a usual reclaim takes."""


def steady(seed: int, seconds: float) -> Scenario:
    """The same load all the time."""
    draw = np.random.default_rng((seed, 10))
    step = float(draw.uniform(45, 75))
    roles = (
        _role(draw, "policy", slots=6, service=(50, 80), fixed=0.0, price=2.0, load=(90, 240)),
        _role(draw, "reference", slots=4, service=(12, 24), fixed=0.3, price=1.0, load=(60, 180)),
        _role(draw, "reward", slots=4, service=(10, 20), fixed=0.3, price=0.5, load=(45, 120)),
    )
    base = Scenario(
        name="steady",
        seed=seed,
        seconds=seconds,
        roles=roles,
        step_seconds=((0.0, step),),
        reclaims=_reclaims(seed, seconds, roles, RECLAIM_EVERY_SECONDS, RECLAIM_SHARE),
    )
    return _warm(base)


def step(seed: int, seconds: float) -> Scenario:
    """The learner gets faster for good (more nodes), and an hour later slower than at first."""
    draw = np.random.default_rng((seed, 11))
    first, second = float(draw.uniform(0.25, 0.35)), float(draw.uniform(0.6, 0.7))
    up, down = float(draw.uniform(1.5, 2.0)), float(draw.uniform(0.6, 0.8))
    return _paced("step", seed, seconds, ((0.0, 1.0), (first, up), (second, down)))


def bursts(seed: int, seconds: float) -> Scenario:
    """Now and then the learner is up to 2.2 times as fast, for 15 to 30 minutes."""
    draw = np.random.default_rng((seed, 12))
    pace: list[tuple[float, float]] = [(0.0, 1.0)]
    now = float(draw.uniform(1500, 3000))
    while now < seconds - 900:
        length = float(draw.uniform(900, 1800))
        pace += [(now / seconds, float(draw.uniform(1.5, 2.2))), ((now + length) / seconds, 1.0)]
        now += length + float(draw.uniform(1500, 3600))
    return _paced("bursts", seed, seconds, tuple(pace))


def diurnal(seed: int, seconds: float) -> Scenario:
    """A day's wave of the learner's speed (its own spot nodes come and go), squeezed into the run."""
    draw = np.random.default_rng((seed, 13))
    height, phase = float(draw.uniform(0.3, 0.5)), float(draw.uniform(0, 2 * math.pi))
    pieces = 96
    pace = tuple(
        (index / pieces, 1 + height * math.sin(phase + 2 * math.pi * index / pieces))
        for index in range(pieces)
    )
    return _paced("diurnal", seed, seconds, pace)


def long_tail(seed: int, seconds: float) -> Scenario:
    """Lengths with a heavy tail, that grow by a quarter as training goes on (as reasoning runs do)."""
    base = steady(seed, seconds)
    growth = tuple((seconds * index / 12, 1 + index / 48) for index in range(13))
    roles = tuple(replace(role, factor=growth) for role in base.roles)
    return replace(base, name="long_tail", roles=roles, length_sigma=0.9, length_most=3.0)


def reclaims(seed: int, seconds: float) -> Scenario:
    """Spot capacity gets scarce: a third of a pool goes at once, several times."""
    base = steady(seed, seconds)
    more = _reclaims(seed + 10_000, seconds, base.roles, 2400.0, 0.35)
    return replace(base, name="reclaims", reclaims=more)


def model_swap(seed: int, seconds: float) -> Scenario:
    """The reward model is swapped for a slower one, later the policy's engine for a faster one, unannounced."""
    draw = np.random.default_rng((seed, 14))
    base = steady(seed, seconds)
    slower, faster = float(draw.uniform(1.6, 2.4)), float(draw.uniform(0.55, 0.75))
    factors: dict[str, Timeline] = {
        "reward": ((0.0, 1.0), (seconds * float(draw.uniform(0.25, 0.4)), slower)),
        "policy": ((0.0, 1.0), (seconds * float(draw.uniform(0.55, 0.7)), faster)),
    }
    roles = tuple(replace(role, factor=factors.get(role.name, role.factor)) for role in base.roles)
    return replace(base, name="model_swap", roles=roles)


def day(seed: int, seconds: float) -> Scenario:
    """Everything at once: a day's wave, bursts on top, long answers, scarce spot nodes, slow nodes, a model swap."""
    draw = np.random.default_rng((seed, 16))
    wave, burst = diurnal(seed, seconds), bursts(seed, seconds)
    usual = steady(seed, seconds).step_seconds[0][1]
    moments = sorted({at for at, _ in wave.step_seconds} | {at for at, _ in burst.step_seconds})
    steps = tuple(
        (at, value_at(wave.step_seconds, at) * value_at(burst.step_seconds, at) / usual) for at in moments
    )
    swap = (seconds * float(draw.uniform(0.4, 0.6)), float(draw.uniform(1.4, 1.8)))
    roles = tuple(
        replace(role, factor=((0.0, 1.0), swap)) if role.name == "reward" else role for role in wave.roles
    )
    scenario = replace(
        wave,
        name="day",
        roles=roles,
        step_seconds=steps,
        length_sigma=0.8,
        length_most=3.0,
        slow_share=0.05,
        reclaims=_reclaims(seed, seconds, roles, 3600.0, 0.25),
    )
    return _warm(scenario)


SHAPES: dict[str, Callable[[int, float], Scenario]] = {
    "steady": steady,
    "step": step,
    "bursts": bursts,
    "diurnal": diurnal,
    "long_tail": long_tail,
    "reclaims": reclaims,
    "model_swap": model_swap,
}


def _role(
    draw: np.random.Generator,
    name: str,
    *,
    slots: int,
    service: tuple[float, float],
    fixed: float,
    price: float,
    load: tuple[float, float],
) -> RoleModel:
    return RoleModel(
        name=name,
        slots=slots,
        service_seconds=float(draw.uniform(*service)),
        fixed_share=fixed,
        price=price,
        provision=(90.0, 240.0),
        load=load,
    )


def _paced(name: str, seed: int, seconds: float, pace: Timeline) -> Scenario:
    """The steady run with the learner's speed times `pace`, whose times are shares of the run."""
    base = steady(seed, seconds)
    usual = base.step_seconds[0][1]
    steps = tuple((at * seconds, usual / speed) for at, speed in pace)
    return _warm(replace(base, name=name, step_seconds=steps))


def _warm(scenario: Scenario) -> Scenario:
    """What a careful person would write into `replicas`: the load at the start, rounded up."""
    counts = {role.name: math.ceil(scenario.needed(role, 0.0)) for role in scenario.roles}
    return replace(scenario, initial=counts)


def _reclaims(
    seed: int, seconds: float, roles: tuple[RoleModel, ...], every: float, share: float
) -> tuple[Reclaim, ...]:
    draw = np.random.default_rng((seed, 15))
    events = []
    for role in roles:
        now = float(draw.exponential(every))
        while now < seconds:
            events.append(Reclaim(now, role.name, share, tuple(draw.random(64).tolist())))
            now += float(draw.exponential(every))
    return tuple(sorted(events, key=lambda event: event.at))
