"""Whether a model's scores are still what they were: a sliding window against a reference. Pure: knows no
model, no clock, no metrics (drift_monitor.py does).

    rows ──▶ reference (the first N, or one that is given), then frozen
         ──▶ window (the last M) ──every M/10 rows──▶ figures, distances from the reference, alarms

A policy that is trained against a reward model moves its scores by design; what this tells apart is *how*: a change of
distribution, scores that begin to follow length (arXiv 2310.03716), and rows that have no score.

The figure is the population stability index over the reference's deciles, sum (p - q) ln(p / q): above 0.1 a change is
worth a look, above 0.25 the population is another (Siddiqi, Credit Risk Scorecards, 2006). Without any change it
behaves as (1/N + 1/M) times a chi-square of bins - 1 degrees (Yurdakul, Statistical Properties of Population
Stability Index, 2018), so that too small windows would alarm by chance alone; DriftSpec refuses those.

Decision: PSI, not Kolmogorov-Smirnov: one pass over fixed bins, the same for scores of a rule that takes three values,
and its bounds are known in the field. KS's p-value alarms on anything once windows are large.
Decision: alarms compare with the reference, not with 0: a rule about length correlates with length from the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from services.common.spec.base import Spec

_BINS = 10
# A value that makes up this share of the reference has a bin of its own: scores of rules are few numbers.
_ATOM_SHARE = 0.05
# An alarm ends below this part of its bound, so that a figure on the bound does not flap.
_RELEASE = 0.8
Kind = Literal["psi", "error_share", "length_correlation"]
KINDS: tuple[Kind, ...] = ("psi", "error_share", "length_correlation")
Floats = NDArray[np.float64]


def chance_psi(reference_rows: int, window_rows: int) -> float:
    """A PSI that two equal populations exceed about once in a thousand looks: mean + 4 deviations."""
    freedom = _BINS - 1
    return (1 / reference_rows + 1 / window_rows) * (freedom + 4 * math.sqrt(2 * freedom))


class DriftSpec(Spec):
    """Watching each model's scores for drift. Costs about a microsecond a row."""

    enabled: bool = True
    reference_rows: int = Field(
        2000,
        ge=100,
        le=100_000,
        description="First rows after loading, where the folder brings no reference.",
    )
    window_rows: int = Field(1000, ge=100, le=100_000, description="Latest rows that are compared with it.")
    psi_alarm: float = Field(0.25, gt=0, description="Population stability index.")
    error_share_alarm: float = Field(
        0.05, gt=0, le=1, description="Share of rows without a score, above the reference's."
    )
    length_correlation_alarm: float = Field(
        0.3, gt=0, le=2, description="Correlation of score and length, away from the reference's."
    )

    @model_validator(mode="after")
    def _above_chance(self) -> DriftSpec:
        chance = chance_psi(self.reference_rows, self.window_rows)
        if self.enabled and self.psi_alarm <= chance:
            raise ValueError(
                f"psi_alarm {self.psi_alarm:g} is reached by chance with {self.reference_rows} and "
                f"{self.window_rows} rows (up to {chance:.2f}); expected larger windows or a higher bound"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a window of rows is like. NaN where it cannot be told (no scores, no spread)."""

    rows: int
    mean: float
    variance: float
    length_correlation: float
    error_share: float


def figures(values: Floats, lengths: Floats) -> Figures:
    """Figures of a window: values [rows], NaN for an error; lengths [rows] of the completions."""
    there = ~np.isnan(values)
    scores, spans = values[there], lengths[there]
    return Figures(
        rows=len(values),
        mean=float(scores.mean()) if len(scores) else math.nan,
        variance=float(scores.var()) if len(scores) else math.nan,
        length_correlation=_correlation(scores, spans),
        error_share=1 - len(scores) / len(values) if len(values) else math.nan,
    )


def _correlation(first: Floats, second: Floats) -> float:
    """Pearson's; NaN for fewer than two rows or no spread."""
    if len(first) < 2:
        return math.nan
    one, two = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(one @ one) * float(two @ two))
    return float(one @ two) / scale if scale > 0 else math.nan


def bin_edges(reference: Floats) -> Floats:
    """Inner edges of the reference's deciles; a value that is frequent by itself gets a bin of its own."""
    edges = np.unique(np.quantile(reference, np.arange(1, _BINS) / _BINS, method="higher"))
    share = np.array([np.count_nonzero(reference == edge) for edge in edges]) / len(reference)
    after = np.nextafter(edges[share >= _ATOM_SHARE], np.inf)
    return np.unique(np.concatenate([edges, after]))


def bin_counts(values: Floats, edges: Floats) -> Floats:
    """How many values lie in each bin, [edges + 1]."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).astype(float)


def stability_index(reference: Floats, window: Floats) -> float:
    """PSI of two histograms over the same bins. Half a row is added to each, so that an empty bin is finite."""
    used = (reference + window) > 0
    p, q = reference[used] + 0.5, window[used] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


@dataclass(slots=True)
class _Rows:
    """A ring of the latest rows."""

    values: Floats
    lengths: Floats
    at: int = 0
    held: int = 0

    @classmethod
    def of(cls, size: int) -> _Rows:
        return cls(np.full(size, np.nan), np.zeros(size))

    def add(self, values: Floats, lengths: Floats) -> None:
        """Add rows, at most as many as there is room for in all."""
        size = len(self.values)
        places = (self.at + np.arange(len(values))) % size
        self.values[places], self.lengths[places] = values, lengths
        self.at = (self.at + len(values)) % size
        self.held = min(size, self.held + len(values))

    def view(self) -> tuple[Floats, Floats]:
        """values, lengths of what is held; order does not matter to any figure."""
        return self.values[: self.held], self.lengths[: self.held]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the scores were like: their figures and histogram."""

    figures: Figures
    edges: Floats
    counts: Floats

    @classmethod
    def of(cls, values: Floats, lengths: Floats) -> Reference | None:
        """None where no row has a score: there is nothing to compare with."""
        scores = values[~np.isnan(values)]
        if not len(scores):
            return None
        edges = bin_edges(scores)
        return cls(figures=figures(values, lengths), edges=edges, counts=bin_counts(scores, edges))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One look at a model. distances: what is compared with the bounds; alarms: which are past them."""

    reference: Figures
    window: Figures
    distances: dict[Kind, float]
    alarms: frozenset[Kind]
    began: frozenset[Kind]
    ended: frozenset[Kind]


class Watcher:
    """One model's drift: rows in, now and then a report out. Pure but for its state; not thread-safe."""

    def __init__(self, spec: DriftSpec, reference: Reference | None = None) -> None:
        self._spec = spec
        self._reference = reference
        self._first = _Rows.of(0 if reference is not None else spec.reference_rows)
        self._window = _Rows.of(spec.window_rows)
        self._block = max(1, spec.window_rows // 10)
        self._values: list[float] = []
        self._lengths: list[int] = []
        self._alarms: frozenset[Kind] = frozenset()

    def add(self, values: Sequence[float], lengths: Sequence[int]) -> list[Report]:
        """Rows in the order they were scored, NaN for an error. A report for every tenth of a window."""
        self._values.extend(values)
        self._lengths.extend(lengths)
        reports = []
        while len(self._values) >= self._block:
            block = np.array(self._values[: self._block]), np.array(self._lengths[: self._block], dtype=float)
            del self._values[: self._block], self._lengths[: self._block]
            if (report := self._look(*block)) is not None:
                reports.append(report)
        return reports

    @property
    def reference_rows(self) -> int:
        """Rows of the reference so far."""
        return self._reference.figures.rows if self._reference is not None else self._first.held

    def _look(self, values: Floats, lengths: Floats) -> Report | None:
        if self._reference is None:
            room = len(self._first.values) - self._first.held
            self._first.add(values[:room], lengths[:room])
            if self._first.held == len(self._first.values):
                self._reference = Reference.of(*self._first.view())
                # Rows that have no score at all are no reference: begin again.
                self._first = _Rows.of(self._spec.reference_rows if self._reference is None else 0)
            values, lengths = values[room:], lengths[room:]
        self._window.add(values, lengths)
        full = self._window.held == self._spec.window_rows
        return self._compared(self._reference) if full and self._reference is not None else None

    def _compared(self, reference: Reference) -> Report:
        values, lengths = self._window.view()
        now, then = figures(values, lengths), reference.figures
        scores = values[~np.isnan(values)]
        distances: dict[Kind, float] = {
            "psi": stability_index(reference.counts, bin_counts(scores, reference.edges))
            if len(scores)
            else math.nan,
            "error_share": now.error_share - then.error_share,
            "length_correlation": abs(now.length_correlation - then.length_correlation),
        }
        alarms = frozenset(kind for kind in KINDS if self._past(kind, distances[kind]))
        before, self._alarms = self._alarms, alarms
        return Report(
            reference=then,
            window=now,
            distances=distances,
            alarms=alarms,
            began=alarms - before,
            ended=before - alarms,
        )

    def _past(self, kind: Kind, distance: float) -> bool:
        bound: float = getattr(self._spec, f"{kind}_alarm")
        return distance > bound * (_RELEASE if kind in self._alarms else 1)
