"""Ratings from simulated annotators: is the order found, are those who guess found, what does choosing pairs save.

`python -m benchmarks.ratings [--quick]`. The simulation is stated in ratings_world.py: 200 items, 20 annotators of whom
3 guess, 20 % flips, 20,000 comparisons. It is looked at in four ways that "20 % flips" can be read: the stronger item
wins unless flipped (figures without a suffix), or the winner is drawn from Bradley-Terry with strengths of deviation
1, 2 or 3 log-odds and then flipped (suffix _spread_1, …), where most comparisons are noise before anybody flips them.

Figures, mean over seeds, and the worst with suffix _worst:
    tau                   Kendall's tau by Bradley-Terry after all comparisons of random pairs, all annotators alike
    tau_weighted          the same with annotators weighted by reliability
    guessing_found        share of seeds in which exactly the guessing annotators are found
    active_label_share    labels until chosen pairs reach the tau_weighted of all random ones, over their number
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from benchmarks import harness
from benchmarks.ratings_world import Campaign, Curve, World, active_curve, labels_to_reach, random_curve

SPREADS = {None: range(5), 1.0: range(3), 2.0: range(3), 3.0: range(3)}
"""Seeds by the spread of the strengths; see ratings_world.World."""
BARS = {
    "tau_worst": harness.at_least(0.85),
    "tau_weighted_worst": harness.at_least(0.85),
    "guessing_found": harness.at_least(1.0),
    "active_label_share_worst": harness.at_most(0.6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one simulated campaign showed. A label share of 1 means: never within as many labels."""

    tau: float
    tau_weighted: float
    found: bool
    active_label_share: float


def measure(world: World, seed: int) -> Outcome:
    """One campaign with random pairs, and one of the same truth with chosen pairs."""
    drawn = Campaign(world, seed)
    target = settled(random_curve(drawn))
    found = drawn.fit(tolerance=1e-4)
    chosen = active_curve(Campaign(world, seed), target)
    return Outcome(
        tau=drawn.tau(drawn.plain()),
        tau_weighted=drawn.tau(found.fit.strengths),
        found=drawn.found_guessing(found) == drawn.guessing,
        active_label_share=(labels_to_reach(chosen, target) or world.labels) / world.labels,
    )


def settled(curve: Curve) -> float:
    """The tau that random pairs end with."""
    return curve[-1][1]


def figures(outcomes: list[Outcome], suffix: str) -> dict[str, float]:
    """Mean and worst over seeds."""
    tau = np.array([outcome.tau for outcome in outcomes])
    weighted = np.array([outcome.tau_weighted for outcome in outcomes])
    share = np.array([outcome.active_label_share for outcome in outcomes])
    return {
        f"tau{suffix}": float(tau.mean()),
        f"tau{suffix}_worst": float(tau.min()),
        f"tau_weighted{suffix}": float(weighted.mean()),
        f"tau_weighted{suffix}_worst": float(weighted.min()),
        f"guessing_found{suffix}": float(np.mean([outcome.found for outcome in outcomes])),
        f"active_label_share{suffix}": float(share.mean()),
        f"active_label_share{suffix}_worst": float(share.max()),
    }


def main(quick: bool) -> dict[str, float]:
    """All readings and seeds; with quick one seed of the first reading."""
    result: dict[str, float] = {}
    for spread, seeds in SPREADS.items():
        if quick and spread is not None:
            break
        suffix = "" if spread is None else f"_spread_{spread:g}"
        outcomes = []
        for seed in seeds[:1] if quick else seeds:
            began = time.monotonic()
            outcomes.append(measure(World(spread=spread), seed))
            harness.say(
                f"{suffix or 'stronger wins'} seed {seed}, {time.monotonic() - began:.0f} s: {outcomes[-1]}"
            )
        result |= figures(outcomes, suffix)
    return result


if __name__ == "__main__":
    harness.run("ratings", main, BARS)
