"""The soak's arithmetic by hand: slopes of memory, the account of rollouts, the plot."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import memory_figures, memory_slopes
from benchmarks.soak_account import account, wrong_rows
from benchmarks.soak_counts import count_figures
from benchmarks.soak_logs import LogGrowth
from benchmarks.soak_memory import Life, Recorder, slope, stretches, student
from benchmarks.soak_plot import write_plot


def test_students_t_against_tables() -> None:
    """The 97.5 % point."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 20: 2.086, 60: 2.000}
    for free, value in table.items():
        assert student(free) == pytest.approx(value, abs=0.005), free


def test_a_slope_by_hand() -> None:
    """Sizes 0, 1, 1, 2 at 0, 1, 2, 3 seconds: 0.6 a second; residuals 0.1, 0.3, 0.3, 0.1 squared are 0.2 in all."""
    found = slope([[(0, 0.0), (1, 1.0), (2, 1.0), (3, 2.0)]])
    half = 4.30265 * math.sqrt(0.2 / 2 / 5)
    assert found.value == pytest.approx(0.6 * 3600)
    assert (found.low, found.high) == pytest.approx(((0.6 - half) * 3600, (0.6 + half) * 3600))
    assert found.stretches == 4


def test_lives_have_levels_of_their_own() -> None:
    """Two lives that each grow by 1 a second are no drift between them, however they differ."""
    found = slope([[(0, 10.0), (1, 11.0), (2, 12.0)], [(50, 3.0), (51, 4.0), (52, 5.0)], [(99, 7.0)]])
    assert found.value == pytest.approx(3600)
    assert found.high - found.low == pytest.approx(0, abs=1e-6)
    assert math.isnan(slope([[(0, 1.0), (1, 2.0)], [(9, 1.0)]]).value)


def test_stretches_are_whole_and_after_the_warm_up() -> None:
    """Looks at 0 to 10 s, warm-up 2, stretches of 3: [2, 5), [5, 8) and, of the last, only what is whole."""
    looks = [(float(at), float(at)) for at in range(11)]
    assert stretches(looks, 2, 3) == [(3, 3), (6, 6)]
    assert stretches(looks, 2, 3, after=4) == [(5, 5), (8, 8)]
    assert stretches([], 2, 3) == []


def test_figures_of_a_process_that_lives_and_one_that_comes_and_goes() -> None:
    """The first by its stretches after a third; the second by its lives, and by all of them together."""
    steady = Life(1, array("d", range(601)), array("d", [100.0] * 601))
    lives = [
        Life(
            pid,
            array("d", range(begin, begin + 150)),
            array("d", [50.0 + pid + at / 60 for at in range(150)]),
        )
        for pid, begin in ((2, 200), (3, 360))
    ]
    figures = memory_figures(memory_slopes({"queue": [steady], "learner": lives}, 600), {"learner": lives})
    assert figures["rss_slope_queue"] == pytest.approx(0)
    assert figures["rss_slope_learner"] == pytest.approx(60)
    assert 0 < figures["rss_slope_learner_resumed"] < 60
    assert figures["rss_slope_worst_low"] == pytest.approx(60)
    assert figures["rss_learner_mib"] == pytest.approx(53 + 149 / 60)


def test_a_process_is_recorded_until_it_ends() -> None:
    """A resident size while it lives, a new life for a new process under the name, nothing when it is gone."""
    recorder = Recorder()
    recorder.note("me", os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        recorder.look({"me": child.pid, "none": None})
        child.kill()
    recorder.look({"me": child.pid})
    assert [life.pid for life in recorder.lives["me"]] == [os.getpid(), child.pid]
    assert [len(life.looks) for life in recorder.lives["me"]] == [1, 1]
    assert 1 < recorder.lives["me"][0].sizes[0] < 100_000
    assert 3 <= recorder.lives["me"][0].descriptors[0] < 100_000
    assert recorder.lives["me"][1].threads[0] == 1
    assert list(recorder.lives) == ["me"]


def test_descriptors_and_threads_early_and_last() -> None:
    """One process gains a descriptor a minute, one comes and goes with two more each time; threads stay."""
    begun, count = array("d", range(601)), 601
    leaks = Life(1, begun, begun, array("d", [20 + at // 60 for at in range(count)]), array("d", [5] * count))
    lives = [
        Life(
            pid,
            array("d", range(at, at + 100)),
            array("d", [1] * 100),
            array("d", [held] * 100),
            array("d", [7] * 100),
        )
        for pid, at, held in ((2, 200, 30), (3, 300, 32), (4, 450, 34))
    ]
    found = count_figures(
        {"policy": [leaks], "learner": lives}, after=200, stretch=20, life_warm_up=40, life_stretch=15
    )
    assert (found["fds_policy_early"], found["fds_policy_last"]) == (24, 29)
    assert found["fds_policy_per_hour"] == pytest.approx(60, rel=0.05)
    assert (found["fds_learner_early"], found["fds_learner_last"]) == (30, 34)
    assert found["fds_learner_per_hour"] == 0
    assert found["fds_growth_worst"] == 5
    assert found["threads_growth_worst"] == found["threads_slope_worst_low"] == 0
    assert 50 < found["fds_slope_worst_low"] < 62
    assert count_figures({}, after=0, stretch=1, life_warm_up=1, life_stretch=1)["fds_growth_worst"] == 0


def test_growth_of_logs() -> None:
    """What was there before does not count; a log that became shorter was set aside, what is in it is new."""
    growth = LogGrowth()
    for policy, queue in ((1024, 0), (3072, 10), (512, 10), (1024, 30)):
        growth.look({"policy": policy, "queue": queue})
    figures = growth.figures(1800)
    assert figures["log_policy_bytes_per_hour"] == 2 * (2048 + 512 + 512)
    assert figures["log_queue_bytes_per_hour"] == 60
    assert (figures["log_largest_kib"], figures["log_set_aside"]) == (3, 1)


G0, G1, G2, G4, G5, G9 = (f"1-{number:08d}-0" for number in (0, 1, 2, 4, 5, 9))
G3 = "2-00000003-0"


def ledger(**changes: Any) -> dict[str, Any]:
    """Four trained, one failed, one in flight: six."""
    ended = {"trained": [[1, 0, 2], [2, 3, 3]], "stale": [], "failed": [[1, 4, 4]]}
    in_flight = [["1-00000005-0", 5, 0, 0, "", 2]]
    return {
        "trained": 4,
        "stale": 0,
        "failed": 1,
        "next_number": 6,
        "in_flight": in_flight,
        "ended": ended,
    } | changes


TAKEN = {1: [G0, G1], 2: [G2, G3]}
ROWS = [
    {
        "step": step,
        "rollouts/admitted": 2 * step + 2,
        "rollouts/trained": 2 * step,
        "rollouts/stale": 0,
        "rollouts/failed": step - 1,
        "rollouts/in_flight": 3 - step,
    }
    for step in (1, 2)
]


def wrong(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if name.startswith("wrong") and value}


def test_an_exact_account() -> None:
    """Every figure of doubt is 0."""
    found = account(ledger(), TAKEN, frozenset({G5}), ROWS)
    assert wrong(found) == {}
    assert (found["admitted"], found["trained"], found["failed"], found["in_flight"]) == (6, 4, 1, 1)


@pytest.mark.parametrize(
    ("changes", "taken", "standing", "expected"),
    [
        ({"next_number": 7}, TAKEN, {G5}, {"wrong_sum": 1}),
        ({}, {1: [G0, G1], 2: [G2, G3, G0]}, {G5}, {"wrong_twice": 1}),
        (
            {"in_flight": [[G5], [G3]], "next_number": 7},
            TAKEN,
            {G5, G3},
            {"wrong_twice": 1, "wrong_trained": 1},
        ),
        ({}, {1: [G0, G1], 2: [G2, G9]}, {G5}, {"wrong_trained": 2}),
        ({}, {1: [G0, G1], 2: [G2, G4]}, {G5}, {"wrong_trained": 2}),
        ({"trained": 5, "failed": 0}, TAKEN, {G5}, {"wrong_trained": 1}),
        ({}, TAKEN, set(), {"wrong_streams": 1}),
        ({}, TAKEN, {G5, G0}, {"wrong_streams": 1}),
    ],
)
def test_what_is_wrong_shows(
    changes: dict[str, Any], taken: dict[int, list[str]], standing: set[str], expected: dict[str, float]
) -> None:
    """A number left out; trained twice; ended and in flight; trained and unknown; failed but taken; miscounted; lost
    from the streams; left over on them."""
    assert wrong(account(ledger(**changes), taken, frozenset(standing), ROWS)) == expected


def test_rows_that_are_wrong() -> None:
    """A sum that does not add up, a step twice, a row that lacks."""
    assert wrong_rows(ROWS, 2) == 0
    assert wrong_rows([ROWS[0], {**ROWS[1], "rollouts/stale": 1}], 2) == 1
    assert wrong_rows([ROWS[0], ROWS[0]], 2) == 1
    assert wrong_rows(ROWS, 3) == 1


def test_the_plot_draws_every_life(tmp_path: Path) -> None:
    """One line a life, one upright an ending, a note for each process."""
    lives = {
        "queue": [Life(1, array("d", [0, 60]), array("d", [8, 9]))],
        "learner": [
            Life(2, array("d", [0, 20]), array("d", [500, 530])),
            Life(3, array("d", [30, 60]), array("d", [9, 9])),
        ],
    }
    write_plot(tmp_path / "plot.svg", lives, [(20.0, "kill"), (55.0, "term")], {"queue": "+1.0 MiB/h"})
    text = (tmp_path / "plot.svg").read_text()
    assert text.count("<polyline") == 3
    assert text.count('opacity="0.35"') == 2
    assert "+1.0 MiB/h" in text
