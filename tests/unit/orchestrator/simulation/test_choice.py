"""How the benchmark chooses the best other: nobody is spared who could win."""

import pytest

from benchmarks.scaling import Runs, best_other, extended, search, simulate
from orchestrator.simulation.contenders import Configuration, grid
from orchestrator.simulation.engine import Result
from orchestrator.simulation.shapes import SHAPES


def runs(name: str, cost: float, idle: float) -> Runs:
    result = Result(
        "any", name, trained_groups=1000, waited_seconds=idle, measured_seconds=1.0, roles_cost=cost
    )
    return Runs(name, [result])


def test_the_cheapest_that_idles_no_more_wins() -> None:
    """A cheaper one that idles more does not count; without any, the one that idles least stands in."""
    several = [runs("lazy", 5, 0.2), runs("dear", 9, 0.01), runs("good", 8, 0.02)]
    assert [(one.name, reached) for one, reached in (best_other(several, 0.02),)] == [("good", True)]
    assert [(one.name, reached) for one, reached in (best_other(several, 0.005),)] == [("dear", False)]


def test_who_cannot_be_eligible_any_more_is_given_up() -> None:
    """Idle shares only add up: past what is allowed on all scenarios together, the rest need not be run."""
    configuration = grid()[0]
    scenarios = [SHAPES["steady"](seed, 2400.0) for seed in (1, 2)]
    assert extended(configuration, runs("one", 5, 0.5), scenarios, 0.1) is None
    whole = extended(configuration, runs("one", 5, 0.0), scenarios, 0.1)
    assert whole is not None
    assert len(whole.results) == 2


def test_the_search_finds_what_trying_everything_finds() -> None:
    """On a small grid and short runs, the same winner at about the same cost."""
    scenarios = [SHAPES["steady"](seed, 4800.0) for seed in (1, 2, 3)]
    tried = [Configuration("keda", "stream", target, 1.25) for target in (1.1, 1.4, 2.0)]
    tried += [Configuration("hpa-cpu", "cpu", target, 0.75) for target in (0.6, 0.9)]
    everything = [simulate(one.name, one.scaler, scenarios) for one in tried]
    screened = {one: simulate(one.name, one.scaler, scenarios[:1]) for one in tried}
    for idle in (0.001, 0.02):
        wanted, _ = best_other(everything, idle)
        found, _ = best_other(search(screened, scenarios, idle, []), idle)
        assert found.cost == pytest.approx(wanted.cost, rel=0.05)
