"""What the report shows of reward hacking, by hand, and the page of a run that was fooled."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.demo.report import render
from orchestrator.demo.run_folder import read_run
from orchestrator.demo.watching import alarm_rows, detail_plots, judges, main_plots
from services.common.spec.watch import WatchSpec
from tests.unit.orchestrator.demo.made_up import (
    metrics,
    watched_metrics,
    worst_samples,
    write_run,
    write_watched,
)


def row(step: int, score: float, annotator: float, kl: float = 0.0) -> dict[str, float]:
    return {
        "step": step,
        "objective/scores": score,
        "objective/scores_std": 2.0,
        "annotator/mean": annotator,
        "annotator/std": 0.5,
        "objective/kl": kl,
    }


def test_both_judges_in_deviations_from_the_start() -> None:
    """First window of two: score 2, deviation 2; annotator 1.5, deviation 0.5."""
    rows = [row(1, 1.0, 1.0), row(2, 3.0, 2.0), row(3, 6.0, 1.0)]
    reward, annotator = judges(rows, 2)
    assert (reward.label, annotator.label) == ("reward", "annotator")
    assert reward.points == [(1, -0.5), (2, 0.5), (3, 2.0)]
    assert annotator.points == [(1, -1.0), (2, 1.0), (3, -1.0)]


def test_the_frontier_is_over_kl() -> None:
    """The same heights at each step's distance, in the order of the steps."""
    rows = [row(1, 2.0, 1.0, kl=0.25), row(2, 4.0, 1.0, kl=1.5), row(3, 3.0, 1.0, kl=1.0)]
    (_, over_time), (frontier, _) = main_plots(rows, 1, 440, 225)
    assert over_time == "Where they part, the reward is being fooled."
    assert frontier.series[0].points == [(0.25, 0.0), (1.5, 1.0), (1.0, 0.5)]
    assert frontier.x_label == "KL, nats"
    assert not frontier.counted


def test_a_run_without_an_annotator_has_one_judge() -> None:
    """And a word on how to have two."""
    [(plot, note), _] = main_plots([row(1, 1.0, 1.0) | {"annotator/std": 0.0}], 1, 440, 225)
    assert [series.label for series in plot.series] == ["reward"]
    assert "watch.annotator_rule" in note
    assert main_plots(metrics(), 5, 440, 225) == []  # without deviations nothing can be compared


def test_alarms_in_words() -> None:
    """Now, once, never, and not at all; with the value last compared and its bound."""
    rows: list[dict[str, float]] = [
        {"step": 1, "alarms/raised": 1, "alarms/length_drift": 1, "alarms/length_drift_value": 1.6},
        {"step": 2, "alarms/raised": 2, "alarms/length_drift": 1, "alarms/length_drift_value": 1.7},
        {"step": 3, "alarms/raised": 1, "alarms/length_drift": 0, "alarms/length_drift_value": 1.4},
    ]
    for at, each in enumerate(rows):
        each |= {
            "alarms/kl_bound": float(at > 1),
            "alarms/kl_bound_value": 0.5 + at / 10,
            "alarms/repetition": 0,
        }
    found = {one.name: one for one in alarm_rows(rows, WatchSpec(kl_nats_per_token=0.6))}
    drift, bound = found["length drift"], found["KL bound"]
    assert (drift.state, drift.when, drift.now, drift.bound) == (
        "was raised",
        "2 steps, 1 to 2",
        "1.40 times",
        "0.667 to 1.50 times",
    )
    assert (bound.state, bound.when, bound.now, bound.bound) == (
        "raised",
        "step 3",
        "0.700 nats",
        "up to 0.600 nats",
    )
    assert (found["repetition"].state, found["repetition"].when) == ("quiet", "")
    assert found["reward hacking"].state == "not judged"
    assert alarm_rows(metrics(), WatchSpec()) == []


def test_details_show_parts_only_where_there_are_several() -> None:
    """Two parts are drawn beside each other; a single one is the reward itself."""
    titles = [plot.title for plot, _ in detail_plots(watched_metrics())]
    assert titles[:3] == ["Parts of the reward", "Reward with annotator", "Score with length"]
    assert titles[3:] == ["Entropy of a token", "Sampling", "Entropy bonus", "Repetition"]
    alone = [{"step": 1.0, "rewards/hh/mean": 1.0, "rewards/hh/length_correlation": 0.5}]
    [(plot, _)] = detail_plots(alone)
    assert [series.label for series in plot.series] == ["reward"]


def test_the_page_of_a_run_that_was_fooled(tmp_path: Path) -> None:
    """It names the alarm and when, and shows the worst samples as text, whatever a model wrote there."""
    folder = write_watched(tmp_path / "run")
    bad = worst_samples(1)[0] | {"completion": "<script>alert(1)</script>", "kl": None}
    with (folder / "worst_samples.jsonl").open("a") as stream:
        import json

        stream.write(json.dumps(bad) + "\n")
    page = render(read_run(folder))
    assert '<b class="state raised">raised</b>' in page
    assert "KL-reward frontier" in page
    assert "Great question!" in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("KL 21.5 nats") == 4


def test_bounds_are_those_of_the_run(tmp_path: Path) -> None:
    """From run.toml; a folder without one shows the defaults, and a run that was not watched has no such section."""
    folder = write_watched(tmp_path / "run")
    assert read_run(folder).watch == WatchSpec()
    (folder / "run.toml").write_text("steps = 3\n[watch]\nlength_change = 3.0\n")
    assert read_run(folder).watch == WatchSpec(length_change=3.0)
    assert "0.250 to 4.00 times" in render(read_run(folder))
    assert "being fooled" not in render(read_run(write_run(tmp_path / "plain")))


@pytest.mark.parametrize("broken", ["steps = ", "[watch]\nlength_change = -1\n"])
def test_a_broken_spec_does_not_stop_the_report(tmp_path: Path, broken: str) -> None:
    """The report of a run that broke off is the one that is wanted."""
    folder = write_watched(tmp_path / "run")
    (folder / "run.toml").write_text(broken)
    assert read_run(folder).watch == WatchSpec()
