"""The schedule, the search for a shorter one, the invariants, and the counting of steps, without a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.chaos.faults import Fault, schedule, shortest
from tests.chaos.invariants import (
    counts_add_up,
    epochs_rise,
    groups_whole,
    trained_on_known,
    versions_rise,
)
from tests.chaos.page import PAGE, methods, page, report_of
from tests.chaos.steps import Steps


def test_a_seed_is_a_schedule() -> None:
    """The same faults again for the same seed; 150 and more in 20 minutes; every kind and every service struck."""
    for seed in (1, 2, 3):
        faults = schedule(seed, 1200, gap=7.0)
        assert faults == schedule(seed, 1200, gap=7.0)
        assert len(faults) >= 130
        assert [one.at for one in faults] == sorted(one.at for one in faults)
        assert max(one.at for one in faults) < 1200
        struck = Counter(one.target for one in faults)
        assert set(struck) == {"policy", "policy-2", "reference", "reward", "learner", "queue", "all"}
        assert {one.kind for one in faults} == {"kill", "stop", "restart", "cut", "delay", "flip", "clock"}
    assert schedule(1, 1200, gap=7.0) != schedule(2, 1200, gap=7.0)


async def test_the_shortest_schedule_is_found() -> None:
    """Two faults of sixty that fail together and not alone are what is left."""
    faults = [Fault(float(at), "kill", "policy") for at in range(60)]
    bad = {faults[7], faults[41]}

    async def fails(part: list[Fault]) -> bool:
        return bad <= set(part)

    assert set(await shortest(faults, fails)) == bad


def test_every_invariant_sees_what_breaks_it() -> None:
    """Silent where all holds; one sentence where a number, an order, a group or a version is wrong."""
    row = {"step": 3.0, "rollouts/admitted": 40.0, "rollouts/trained": 30.0, "rollouts/stale": 2.0}
    row |= {"rollouts/failed": 1.0, "rollouts/in_flight": 7.0}
    assert counts_add_up(row) == []
    assert len(counts_add_up(row | {"rollouts/in_flight": 6.0})) == 1
    assert versions_rise("policy", [(1, 0), (1, 3), (1, 3), (2, 1)]) == []
    assert len(versions_rise("policy", [(1, 4), (1, 3)])) == 1
    assert len(versions_rise("policy", [(2, 0), (1, 9)])) == 1
    assert epochs_rise([1, 2, 4]) == []
    assert len(epochs_rise([1, 2, 2])) == 1
    rows = [{"group": "a", "versions": [(1, 0, "x")]}] * 2 + [{"group": "b", "versions": [(1, 1, "y")]}] * 2
    assert groups_whole(1, rows, 2) == []
    assert len(groups_whole(1, rows[:3], 2)) == 1
    known = {(1, 0): {"x"}, (1, 1): {"y"}}
    assert trained_on_known(1, rows, known) == []
    assert len(trained_on_known(1, rows, {**known, (1, 1): {"z"}})) == 1


def test_steps_are_counted_over_a_resume(tmp_path: Path) -> None:
    """Rows that a resumed learner drops are not counted twice, those it trains again are; half a line is none."""
    file = tmp_path / "metrics.jsonl"
    steps = Steps(file)
    assert steps.look() == 0
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    file.write_text("".join(lines) + '{"step"')
    assert steps.look() == 3
    kept = tmp_path / "kept"
    kept.write_text(lines[0])
    kept.replace(file)
    assert steps.look() == 3
    with file.open("a") as stream:
        stream.write(lines[1])
    assert steps.look() == 4
    assert steps.newest == {"step": 2}


def test_the_page_is_that_of_the_results() -> None:
    """docs/reliability.md is what `python -m tests.chaos.page` writes; every method of the contract is in it."""
    assert PAGE.read_text() == page(report_of())
    assert len(methods()) == len(set(methods())) >= 26
    run = {
        "minutes": 2.0,
        "faults": 3,
        "wrong": ["x"],
        "figures": dict.fromkeys(("steps", "admitted", "trained", "stale", "failed", "dead_letters"), 7.0)
        | {"optimality": 0.98765},
        "recovery_seconds": {"kill policy": {"times": 2, "median": 1.25, "worst": 2.5}},
    }
    told = page({"5": run, "6": run})
    assert "| 5 | 2 | 3 | 7 | 7 | 7 | 7 | 7 | 7 | 1 | 0.988 |" in told
    assert "| kill policy | 4 | 1.2 to 1.2 | 2.5 |" in told
