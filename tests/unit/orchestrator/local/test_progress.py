"""A run's progress in words."""

from __future__ import annotations

import io

from rich.console import Console

from orchestrator.local.progress import LiveView, Pace, counts, describe, duration
from trimtab.learner.v1 import learner_pb2 as learner


def status_at(
    step: int, phase: learner.RunPhase = learner.RUN_PHASE_TRAINING
) -> learner.GetRunStatusResponse:
    return learner.GetRunStatusResponse(
        phase=phase,
        step=step,
        total_steps=32,
        rollouts=learner.RolloutCounts(admitted=320, trained=288, stale=3, failed=1, in_flight=28),
        metrics={"objective/kl": 3.25, "objective/scores": 0.5, "perf/tokens_per_second": 812.4},
    )


def test_everything_worth_seeing_is_shown() -> None:
    """Stage, step, reward, KL, rollouts in flight, tokens per second, time left."""
    assert describe(status_at(9), 75.0) == {
        "stage": "training",
        "step": "9/32",
        "reward": "0.500",
        "KL": "3.250",
        "in flight": "28",
        "tokens/s": "812",
        "left": "1:15",
    }


def test_what_is_not_known_is_left_out() -> None:
    """A learner that still loads has no figures."""
    loading = learner.GetRunStatusResponse(phase=learner.RUN_PHASE_LOADING)
    assert describe(loading, None) == {"stage": "loading"}


def test_the_account_adds_up_in_words() -> None:
    """The final line names every part of what was admitted."""
    assert counts(status_at(9)) == ("320 groups admitted = 288 trained + 3 stale + 1 failed + 28 in flight")


def test_time_left_follows_the_pace_seen() -> None:
    """Two steps in 20 s leave 30 s for the last three; a learner that was set back begins a new estimate."""
    pace = Pace()
    assert pace.seconds_left(5, 10, 100.0) is None
    assert pace.seconds_left(7, 10, 120.0) == 30.0
    assert pace.seconds_left(4, 10, 130.0) is None
    assert pace.seconds_left(5, 10, 132.0) == 10.0


def test_durations_are_readable() -> None:
    """Minutes and seconds, hours where there are some, never negative."""
    assert [duration(seconds) for seconds in (-1, 0, 59.6, 75, 3700)] == [
        "0:00",
        "0:00",
        "1:00",
        "1:15",
        "1:01:40",
    ]


def test_without_a_terminal_each_step_is_one_line() -> None:
    """A log of a run in CI shows every step once."""
    out = io.StringIO()
    with LiveView(Console(file=out, width=200)) as view:
        for step in (1, 1, 2):
            view.show(status_at(step))
    lines = out.getvalue().splitlines()
    assert [line.split("step ")[1].split()[0] for line in lines] == ["1/32", "2/32"]
