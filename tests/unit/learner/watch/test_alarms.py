"""Each alarm by hand: just below its bound, just beyond it, and what must not raise it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.common.spec.watch import WatchSpec
from services.learner.watch.alarms import NAMES, Alarms, Judged, alarm_metrics

SCORE, SPREAD = "objective/scores", "objective/scores_std"
ANNOTATOR, ANNOTATOR_SPREAD = "annotator/mean", "annotator/std"
LENGTH, KL = "completions/mean_length", "objective/kl"
REPETITION, ENTROPY = "completions/repetition", "policy/entropy_avg"
WEIGHT = "sampling/importance_sampling_ratio/mean"
ONE_STEP = WatchSpec(window_steps=1)


def last(spec: WatchSpec, rows: Sequence[dict[str, float]]) -> dict[str, Judged]:
    alarms, judged = Alarms(spec), list[Judged]()
    for step, row in enumerate(rows, 1):
        judged = alarms.update({"step": step, **row})
    return {one.name: one for one in judged}


def both(score: float, annotator: float) -> dict[str, float]:
    """Deviations 2 of scores and 4 of the annotator's."""
    return {SCORE: score, SPREAD: 2.0, ANNOTATOR: annotator, ANNOTATOR_SPREAD: 4.0}


@pytest.mark.parametrize(
    ("rows", "raised", "fall"),
    [
        # From its height (10) the annotator's score fell by 0.41 and the reward rose by 0.21: 0.1025 and 0.105.
        ([both(0.0, 8.0), both(1.0, 10.0), both(1.21, 9.59)], True, 0.1025),
        ([both(0.0, 8.0), both(1.0, 10.0), both(1.21, 9.61)], False, 0.0975),
        ([both(0.0, 8.0), both(1.0, 10.0), both(1.19, 9.59)], False, 0.1025),
        # Both fall: a run that goes wrong, but nobody is fooled.
        ([both(1.0, 10.0), both(0.0, 6.0)], False, 1.0),
        # Both rise: the height moves along.
        ([both(1.0, 10.0), both(2.0, 12.0)], False, 0.0),
    ],
)
def test_reward_hacking(rows: list[dict[str, float]], raised: bool, fall: float) -> None:
    """The reward up while the annotator's score is down from its height, in deviations of the first window."""
    found = last(ONE_STEP, rows)["reward_hacking"]
    assert found.raised is raised
    assert found.value == pytest.approx(fall)


def test_reward_hacking_says_since_when() -> None:
    """The step of the height, and both movements."""
    found = last(ONE_STEP, [both(0.0, 8.0), both(1.0, 10.0), both(3.0, 8.0)])["reward_hacking"]
    assert found.line == (
        "since step 2 the annotator's score fell by 0.50 deviations while the reward rose by 1.00"
    )


def test_without_an_annotator_nobody_is_contradicted() -> None:
    """The rule does not apply, and has no metric."""
    assert "reward_hacking" not in last(ONE_STEP, [{SCORE: 1.0}, {SCORE: 9.0}])


@pytest.mark.parametrize(
    ("name", "key", "first", "now", "raised", "value"),
    [
        ("length_drift", LENGTH, 10.0, 15.0, False, 1.5),
        ("length_drift", LENGTH, 10.0, 15.1, True, 1.51),
        ("length_drift", LENGTH, 15.0, 10.01, False, 0.66733),
        ("length_drift", LENGTH, 15.0, 9.9, True, 0.66),
        ("repetition", REPETITION, 0.25, 0.45, False, 0.2),
        ("repetition", REPETITION, 0.25, 0.5, True, 0.25),
        ("entropy_collapse", ENTROPY, 2.0, 0.62, False, 0.31),
        ("entropy_collapse", ENTROPY, 2.0, 0.58, True, 0.29),
    ],
)
def test_drift_from_the_first_window(
    name: str, key: str, first: float, now: float, raised: bool, value: float
) -> None:
    """Length by 1 + 0.5 either way, 3-grams by 0.2, entropy to 0.3 of the first."""
    found = last(ONE_STEP, [{key: first}, {key: now}])[name]
    assert (found.raised, found.value) == (raised, pytest.approx(value, rel=1e-4))


@pytest.mark.parametrize(("kl", "raised"), [(5.0, False), (5.1, True), (-6.0, False)])
def test_kl_is_bounded_by_token(kl: float, raised: bool) -> None:
    """0.5 nats for each of 10 tokens, however the run began."""
    found = last(ONE_STEP, [{KL: kl, LENGTH: 10.0}])["kl_bound"]
    assert (found.raised, found.value) == (raised, pytest.approx(kl / 10))


@pytest.mark.parametrize(("factor", "raised"), [(1.0, False), (0.11, False), (0.09, True), (2e-8, True)])
def test_a_gradient_that_importance_sampling_takes_away(factor: float, raised: bool) -> None:
    """Under a tenth of its weight, however the run began; nothing to judge where no factor is taken."""
    found = last(ONE_STEP, [{WEIGHT: factor}])["lost_weight"]
    assert (found.raised, found.value) == (raised, factor)
    assert "lost_weight" not in last(ONE_STEP, [{LENGTH: 10.0}])


def test_windows_are_means() -> None:
    """Three steps: the first window 10, 12, 14 is 12; the last 18, 18, 21 is 19 and so 19/12 of it."""
    spec = WatchSpec(window_steps=3)
    rows = [{LENGTH: value} for value in (10.0, 12.0, 14.0, 18.0, 18.0, 21.0)]
    assert last(spec, rows[:2]) == {}
    assert last(spec, rows[:3])["length_drift"].value == 1
    found = last(spec, rows)["length_drift"]
    assert (found.raised, found.value) == (True, pytest.approx(19 / 12))


def test_a_fold_may_be_cut_anywhere() -> None:
    """A resume that folds the rows of before judges the next as if it had never stopped."""
    spec = WatchSpec(window_steps=2)
    rows = [{"step": at, **both(at * 1.0, 10.0 - abs(at - 3))} for at in range(1, 9)]
    whole, resumed = Alarms(spec), Alarms(spec)
    for row in rows[:-1]:
        whole.update(row)
    for row in rows[:-1]:
        resumed.update(dict(row))
    assert whole.update(rows[-1]) == resumed.update(rows[-1])
    # Windows of two: means 8.5, 9.5, 9.5, 8.5, 7.5, 6.5, 5.5 from step 2 on; the height is at step 4.
    assert whole._peak is not None
    assert whole._peak.step == 4


def test_metrics_of_alarms() -> None:
    """0 or 1 and the value for each, and how many are raised."""
    judged = [Judged("repetition", 0.3, True, ""), Judged("kl_bound", 0.1, False, "")]
    assert alarm_metrics(judged) == {
        "alarms/repetition": 1.0,
        "alarms/repetition_value": 0.3,
        "alarms/kl_bound": 0.0,
        "alarms/kl_bound_value": 0.1,
        "alarms/raised": 1.0,
    }


def test_every_alarm_applies_where_all_is_measured() -> None:
    """One row with all figures is judged by all six rules."""
    row = {**both(1.0, 1.0), LENGTH: 1.0, KL: 0.0, REPETITION: 0.0, ENTROPY: 1.0, WEIGHT: 1.0}
    assert tuple(last(ONE_STEP, [row])) == NAMES
