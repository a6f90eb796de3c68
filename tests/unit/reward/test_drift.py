"""Drift: figures against numbers computed by hand, and alarms that neither miss nor flap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from services.reward.drift import (
    DriftSpec,
    Reference,
    Report,
    Watcher,
    bin_counts,
    bin_edges,
    chance_psi,
    figures,
    stability_index,
)

SPEC = DriftSpec(reference_rows=1000, window_rows=500)


def feed(watcher: Watcher, values: np.ndarray, lengths: np.ndarray, batch: int = 37) -> list[Report]:
    """Add rows in calls of an odd size, as they come."""
    return [
        report
        for start in range(0, len(values), batch)
        for report in watcher.add(
            values[start : start + batch].tolist(), lengths[start : start + batch].tolist()
        )
    ]


def normal(seed: int, rows: int, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a normal distribution, lengths that have nothing to do with them."""
    random = np.random.default_rng(seed)
    return random.normal(mean, 1, rows), random.integers(10, 500, rows)


def test_figures_by_hand() -> None:
    """Mean, variance and correlation are of the rows that have scores; the share of errors is of all."""
    values = np.array([1.0, 2.0, math.nan, 6.0])
    got = figures(values, np.array([10.0, 20.0, 1000.0, 60.0]))
    assert (got.rows, got.mean, got.error_share) == (4, 3.0, 0.25)
    assert got.variance == pytest.approx((4 + 1 + 9) / 3)
    assert got.length_correlation == pytest.approx(1.0)
    opposite = figures(np.array([1.0, 2.0, 3.0]), np.array([5.0, 1.0, 3.0]))
    # Deviations -1 0 1 and 2 -2 0: -2 / sqrt(2 * 8).
    assert opposite.length_correlation == pytest.approx(-0.5)


@pytest.mark.parametrize("values", [[], [math.nan, math.nan], [4.0], [4.0, 4.0]])
def test_figures_that_cannot_be_told_are_nan(values: list[float]) -> None:
    """No rows, no scores, one score or no spread give no correlation, and no warning."""
    assert math.isnan(figures(np.array(values), np.arange(float(len(values)))).length_correlation)


def test_stability_index_by_hand() -> None:
    """PSI of shares (1/2, 1/2) against (1/4, 3/4), half a row added to each bin."""
    got = stability_index(np.array([500.0, 500.0]), np.array([250.0, 750.0]))
    p, q = 500.5 / 1001, 250.5 / 1001
    assert got == pytest.approx((p - q) * math.log(p / q) + (q - p) * math.log((1 - p) / (1 - q)))
    assert got == pytest.approx(0.25 * math.log(3), abs=1e-3)
    assert stability_index(np.array([500.0, 500.0]), np.array([50.0, 50.0])) == pytest.approx(0)


def test_bins_are_the_references_deciles() -> None:
    """A continuous reference falls into ten bins of a tenth each."""
    values = np.arange(1000.0)
    assert bin_counts(values, bin_edges(values)).tolist() == [100.0] * 10


@pytest.mark.parametrize(
    ("reference", "values", "expected"),
    [
        ([0.0] * 100, [-1.0, 0.0, 0.0, 0.5], [1, 2, 1]),
        ([0.0] * 60 + [1.0] * 40, [0.0, 1.0, 1.0, 0.5, 2.0, -1.0], [1, 1, 1, 2, 1]),
    ],
)
def test_frequent_values_have_bins_of_their_own(
    reference: list[float], values: list[float], expected: list[float]
) -> None:
    """Scores of a rule are few numbers: what lies below, between and above them counts apart."""
    edges = bin_edges(np.array(reference))
    assert bin_counts(np.array(values), edges).tolist() == expected


def test_psi_without_drift_stays_below_chance() -> None:
    """100 windows of the same population have the mean PSI of theory, and none passes what the spec calls chance."""
    reference = Reference.of(*normal(0, 2000))
    assert reference is not None
    indices = [
        stability_index(reference.counts, bin_counts(normal(seed, 1000)[0], reference.edges))
        for seed in range(1, 101)
    ]
    assert max(indices) < chance_psi(2000, 1000)
    # (1/2000 + 1/1000) * 9, with the one reference that all of them share.
    assert 0.006 < np.mean(indices) < 0.03


def test_no_report_before_reference_and_window_are_full() -> None:
    """The first rows are the reference, the next a window; only then is anything compared."""
    watcher = Watcher(SPEC)
    assert feed(watcher, *normal(1, 1000)) == []
    assert watcher.reference_rows == 1000
    assert feed(watcher, *normal(2, 499)) == []
    [first] = feed(watcher, *normal(3, 10))
    assert (first.reference.rows, first.window.rows) == (1000, 500)
    assert not first.alarms


def test_a_shift_alarms_once_and_ends_once() -> None:
    """Scores that move by two deviations alarm by PSI once; when they are back, the alarm ends once."""
    watcher = Watcher(SPEC)
    feed(watcher, *normal(1, 1500))
    moved = feed(watcher, *normal(2, 1500, mean=2.0))
    back = feed(watcher, *normal(3, 1500))
    assert [kind for report in moved for kind in report.began] == ["psi"]
    assert [kind for report in moved for kind in report.ended] == []
    assert [kind for report in back for kind in report.ended] == ["psi"]
    assert moved[-1].distances["psi"] > 1
    assert moved[-1].window.mean == pytest.approx(2, abs=0.2)
    assert back[-1].distances["psi"] < 0.1


def test_scores_that_begin_to_follow_length_alarm() -> None:
    """The distribution stays the same, but longer answers score higher: only the correlation alarms."""
    watcher = Watcher(SPEC)
    feed(watcher, *normal(1, 1500))
    values, _ = normal(2, 500)
    reports = feed(watcher, values, np.argsort(np.argsort(values)) * 3)
    assert reports[-1].alarms == {"length_correlation"}
    assert reports[-1].window.length_correlation > 0.9


def test_errors_alarm_against_the_references_share() -> None:
    """A share of errors that was there from the beginning is no drift; one that rises by more than the bound is."""
    random = np.random.default_rng(4)
    values, lengths = normal(4, 3500)
    values[:2000][random.random(2000) < 0.10] = math.nan
    values[2000:][random.random(1500) < 0.30] = math.nan
    watcher = Watcher(SPEC)
    assert all("error_share" not in report.alarms for report in feed(watcher, values[:2000], lengths[:2000]))
    after = feed(watcher, values[2000:], lengths[2000:])
    assert after[-1].alarms == {"error_share"}
    assert after[-1].distances["error_share"] == pytest.approx(0.2, abs=0.06)


def test_a_window_of_errors_alone_is_no_crash() -> None:
    """With no score left PSI cannot be told; the share of errors alarms."""
    watcher = Watcher(SPEC)
    feed(watcher, *normal(1, 1500))
    reports = feed(watcher, np.full(500, math.nan), np.full(500, 7))
    assert reports[-1].alarms == {"error_share"}
    assert math.isnan(reports[-1].distances["psi"])


def test_errors_alone_are_no_reference() -> None:
    """When the first rows have no score at all, the reference begins again after them."""
    watcher = Watcher(SPEC)
    feed(watcher, np.full(1000, math.nan), np.zeros(1000, dtype=int))
    feed(watcher, *normal(1, 1000))
    reports = feed(watcher, *normal(2, 500))
    assert reports[-1].reference.error_share == 0


def test_an_alarm_on_its_bound_does_not_flap() -> None:
    """A share of errors that swings closely around the bound begins one alarm and no second."""
    spec = DriftSpec(reference_rows=1000, window_rows=500, error_share_alarm=0.10)
    watcher = Watcher(spec)
    feed(watcher, *normal(1, 1500))
    began = []
    for block in range(200):
        values, lengths = normal(block + 10, 50)
        # 7 blocks with 6 errors in 50 rows, 7 with 4: of ten blocks, between 46 and 54 of 500.
        values[: 6 if block % 14 < 7 else 4] = math.nan
        began += [kind for report in feed(watcher, values, lengths) for kind in report.began]
    assert began.count("error_share") == 1


def test_windows_too_small_for_their_bound_are_refused() -> None:
    """A configuration that would alarm by chance alone is told so, with the figure."""
    with pytest.raises(ValidationError, match="reached by chance with 200 and 100 rows"):
        DriftSpec(reference_rows=200, window_rows=100, psi_alarm=0.25)
    DriftSpec(reference_rows=200, window_rows=100, psi_alarm=0.25, enabled=False)
