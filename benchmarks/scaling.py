"""Measures the scaling planner on the simulator: `Auto` against a clairvoyant optimum, HPA and KEDA.

    auto_vs_optimum_steady   cost of Auto over that of the optimum, steady load, mean over seeds
    auto_vs_optimum_burst    the same, bursts
    auto_vs_best_other       cost of Auto over that of the best other, mean over load shapes and seeds

Cost is GPU-hours weighted by price of the scaled roles (policy, reference, reward) per 1,000 trained rollout groups,
after 20 minutes of warm-up in runs of 3 hours. The learner's GPUs are the same for all and left out: with them every
ratio to the optimum would look better; `…_with_learner` has them. Idle share is the part of the measured time in
which the learner waits for groups. All scalers start with the same replicas (the load at the start, rounded up), meet
the same groups, start-ups, slow nodes and reclaims (common random numbers), and see metrics that are 15 to 30 s old.

The optimum (orchestrator/simulation/optimum.py) knows everything beforehand and trains as many groups as Auto did.

The best other is chosen apart for each load shape, after the fact, out of a grid of 126 configurations of HPA on CPU,
HPA on backlog and KEDA on stream length (orchestrator/simulation/contenders.py): the cheapest whose idle share,
averaged over the seeds, is at most Auto's. Where none is, the one with the least idle share stands in, marked with *.
The grid is run on the first seeds; then, cheapest first, on all seeds, until what follows costs more than one that is
eligible (less 5 % for doubt). For those who find the last tenth of a percent of idleness too dear,
`auto_vs_best_other_one_point_more_idle` lets the others wait one percentage point more than Auto.

`--first-seed N` takes other seeds; `--shapes a,b` fewer shapes (the figures then are over those).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks import harness
from orchestrator.simulation.contenders import DEFAULTS, Configuration, auto, grid
from orchestrator.simulation.engine import Result, Scaler, Simulation
from orchestrator.simulation.optimum import clairvoyant
from orchestrator.simulation.scenario import Scenario
from orchestrator.simulation.shapes import SHAPES

SECONDS = 3 * 3600.0
SEEDS, QUICK_SEEDS = 10, 3
SCREEN_SEEDS, QUICK_SCREEN_SEEDS = 2, 1
QUICK_GRID = 3
"""A quick run tries every so-manieth configuration of the grid."""
LAX = 0.01
"""Idle share over Auto's that the laxer comparison allows the others."""
DOUBT = 0.05
"""Relative, of a cost that was measured on the screening's seeds alone."""


@dataclass(slots=True)
class Runs:
    """One contender on one shape, one result a seed."""

    name: str
    results: list[Result] = field(default_factory=list)

    @property
    def idle(self) -> float:
        """Mean idle share."""
        return fmean(result.idle_share for result in self.results)

    @property
    def cost(self) -> float:
        """Mean cost per 1,000 trained groups."""
        return fmean(result.cost_per_thousand for result in self.results)


def simulate(name: str, make: Callable[[Scenario], Scaler], scenarios: Iterable[Scenario]) -> Runs:
    """One contender over the scenarios."""
    return Runs(name, [Simulation(scenario, make(scenario)).run() for scenario in scenarios])


def best_other(runs: Iterable[Runs], idle: float) -> tuple[Runs, bool]:
    """The cheapest with an idle share of at most `idle`; else the one that idles least, and False."""
    several = list(runs)
    eligible = [one for one in several if one.idle <= idle]
    if eligible:
        return min(eligible, key=lambda one: one.cost), True
    return min(several, key=lambda one: one.idle), False


def search(
    screened: dict[Configuration, Runs], scenarios: list[Scenario], idle: float, known: list[Runs]
) -> list[Runs]:
    """`known` and all configurations on all scenarios that can still be the best, cheapest in the screening first.

    Left out are those whose idle shares on some scenarios alone exceed what the laxer bound allows on all of them,
    and those that cost more in the screening, less `DOUBT`, than an eligible one does on all.
    """
    complete = list(known)
    bound = min((one.cost for one in known if one.idle <= idle), default=math.inf)
    for configuration in sorted(screened, key=lambda one: screened[one].cost):
        if screened[configuration].cost * (1 - DOUBT) > bound:
            break
        runs = extended(configuration, screened[configuration], scenarios, (idle + LAX) * len(scenarios))
        if runs is None:
            continue
        complete.append(runs)
        if runs.idle <= idle:
            bound = min(bound, runs.cost)
    return complete


def extended(
    configuration: Configuration, screened: Runs, scenarios: list[Scenario], allowed: float
) -> Runs | None:
    """The screening's runs and the missing ones; None once their idle shares add up to more than `allowed`."""
    results = list(screened.results)
    for scenario in scenarios[len(results) :]:
        if sum(result.idle_share for result in results) > allowed:
            return None
        results.append(Simulation(scenario, configuration.scaler(scenario)).run())
    return Runs(screened.name, results)


@dataclass(slots=True)
class Shape:
    """All that was measured on one load shape."""

    name: str
    auto: Runs
    vs_optimum: list[float]
    defaults: list[Runs]
    best: Runs
    reached: bool
    lax: Runs
    """The best other that may wait `LAX` more than Auto."""

    @property
    def vs_best(self) -> list[float]:
        """Auto's cost over the best other's, by seed."""
        return self._over(self.best)

    @property
    def vs_lax(self) -> list[float]:
        """The same with the laxer bound on idleness."""
        return self._over(self.lax)

    def _over(self, other: Runs) -> list[float]:
        pairs = zip(self.auto.results, other.results, strict=True)
        return [ours.cost_per_thousand / theirs.cost_per_thousand for ours, theirs in pairs]

    @property
    def vs_best_with_learner(self) -> list[float]:
        """The same with the learner's price."""
        pairs = zip(self.auto.results, self.best.results, strict=True)
        return [ours.whole_cost_per_thousand / theirs.whole_cost_per_thousand for ours, theirs in pairs]


def measure_shape(name: str, seeds: list[int], screen: int, tried: list[Configuration]) -> Shape:
    """Auto, the optimum, the defaults and the grid on one load shape."""
    scenarios = [SHAPES[name](seed, SECONDS) for seed in seeds]
    ours = simulate("auto", auto, scenarios)
    ratios = [
        result.cost_per_thousand / clairvoyant(scenario, result).cost_per_thousand
        for scenario, result in zip(scenarios, ours.results, strict=True)
    ]
    screened = {one: simulate(one.name, one.scaler, scenarios[:screen]) for one in tried}
    defaults = [simulate(f"{family} default", one.scaler, scenarios) for family, one in DEFAULTS.items()]
    complete = search(screened, scenarios, ours.idle, defaults)
    best, reached = best_other(complete, ours.idle)
    lax, _ = best_other(complete, ours.idle + LAX)
    return Shape(name, ours, ratios, defaults, best, reached, lax)


def measure(quick: bool, *, first_seed: int = 1, names: Iterable[str] = tuple(SHAPES)) -> dict[str, float]:
    """All figures. The table by shape goes to stderr as it grows."""
    seeds = list(range(first_seed, first_seed + (QUICK_SEEDS if quick else SEEDS)))
    screen = QUICK_SCREEN_SEEDS if quick else SCREEN_SEEDS
    tried = grid()[:: QUICK_GRID if quick else 1]
    harness.say(
        f"{len(seeds)} seeds from {first_seed}, {len(tried)} configurations; cost per 1,000 groups, idle share"
    )
    shapes = []
    for name in names:
        shape = measure_shape(name, seeds, screen, tried)
        shapes.append(shape)
        harness.say(line(shape))
    return figures(shapes)


def line(shape: Shape) -> str:
    """One shape for people."""
    defaults = ", ".join(f"{one.name} {one.cost:.2f} {one.idle:.1%}" for one in shape.defaults)
    mark = "" if shape.reached else "*"
    return (
        f"  {shape.name:<10} auto {shape.auto.cost:6.2f} {shape.auto.idle:6.2%}   over the optimum "
        f"{fmean(shape.vs_optimum):.3f}   best other{mark} {shape.best.cost:6.2f} {shape.best.idle:6.2%} "
        f"({shape.best.name})   ratio {fmean(shape.vs_best):.3f}\n{'':13}{defaults}"
    )


def figures(shapes: list[Shape]) -> dict[str, float]:
    """Cost over the optimum and over the best of the others, then what else tells something."""
    by_name = {shape.name: shape for shape in shapes}
    found = {}
    for figure, name in (("auto_vs_optimum_steady", "steady"), ("auto_vs_optimum_burst", "bursts")):
        if name in by_name:
            found[figure] = fmean(by_name[name].vs_optimum)
            found[f"{figure}_worst_seed"] = max(by_name[name].vs_optimum)
    found["auto_vs_best_other"] = fmean(ratio for shape in shapes for ratio in shape.vs_best)
    found["auto_vs_best_other_worst_shape"] = max(fmean(shape.vs_best) for shape in shapes)
    found["auto_vs_best_other_one_point_more_idle"] = fmean(
        ratio for shape in shapes for ratio in shape.vs_lax
    )
    found["auto_vs_best_other_with_learner"] = fmean(
        ratio for shape in shapes for ratio in shape.vs_best_with_learner
    )
    found["auto_idle_share"] = fmean(shape.auto.idle for shape in shapes)
    found["best_other_idle_share"] = fmean(shape.best.idle for shape in shapes)
    found["shapes_where_no_other_reached_the_idle_share"] = float(sum(not shape.reached for shape in shapes))
    found["least_over_the_optimum"] = min(ratio for shape in shapes for ratio in shape.vs_optimum)
    for shape in shapes:
        found[f"cost_per_thousand_{shape.name}"] = shape.auto.cost
    return found


BARS = {
    "auto_vs_optimum_steady": harness.at_most(1.1),
    "auto_vs_optimum_burst": harness.at_most(1.35),
    "auto_vs_best_other": harness.at_most(0.85),
}


def main() -> None:
    """Take our own flags, leave the others to the harness."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    ours, rest = parser.parse_known_args()
    unknown = sorted(set(ours.shapes.split(",")) - set(SHAPES))
    if unknown:
        parser.error(f"no such shape: {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    sys.argv[1:] = rest
    harness.run(
        "scaling",
        lambda quick: measure(quick, first_seed=ours.first_seed, names=ours.shapes.split(",")),
        BARS,
        own=parser,
    )


if __name__ == "__main__":
    main()
