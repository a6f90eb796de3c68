"""Each model's drift as gauges and log lines. Owns which reference is whose; the figures are drift.py's.

A swap begins a new reference: another model may score on another scale.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from prometheus_client import Gauge

from services.common.errors import InvalidInput
from services.reward.drift import KINDS, DriftSpec, Reference, Report, Watcher
from services.reward.metrics import Series
from services.reward.rewards.base import ScoreOutcome, ScoreRow

REFERENCE_FILE = "reference_scores.json"
_LEAST_ROWS = 100
_log = structlog.get_logger(__name__)

_WINDOWS = ["model", "window"]
PSI = Gauge("trimtab_reward_drift_psi", "Population stability index, window against reference.", ["model"])
MEAN = Gauge("trimtab_reward_drift_mean", "Mean of the scores.", _WINDOWS)
VARIANCE = Gauge("trimtab_reward_drift_variance", "Variance of the scores.", _WINDOWS)
LENGTH_CORRELATION = Gauge(
    "trimtab_reward_drift_length_correlation", "Correlation of score and length of the completion.", _WINDOWS
)
ERROR_SHARE = Gauge("trimtab_reward_drift_error_share", "Share of rows without a score.", _WINDOWS)
ROWS = Gauge("trimtab_reward_drift_rows", "Rows that a window holds.", _WINDOWS)
ALARM = Gauge("trimtab_reward_drift_alarm", "1 while a figure is past its bound.", ["model", "kind"])


def read_reference(folder: Path, digest: str) -> Reference | None:
    """The reference that a model's folder brings; None where there is none, or it is another model's.

    reference_scores.json: {"scores": [number or null for an error, …], "lengths": [completions' characters, …],
    "model_digest": hex}; the digest may be left out. InvalidInput for anything else.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        return None
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
        values = np.array(
            [math.nan if score is None else float(score) for score in table["scores"]], dtype=np.float64
        )
        lengths = np.array([int(length) for length in table["lengths"]], dtype=np.float64)
        of = str(table.get("model_digest", ""))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: expected scores and lengths ({type(error).__name__}: {error})"
        ) from error
    if len(values) != len(lengths) or len(values) < _LEAST_ROWS or np.isinf(values).any():
        raise InvalidInput(
            f"{path}: expected as many lengths as scores, at least {_LEAST_ROWS}, all of them finite"
        )
    if of and of != digest:
        _log.warning("reference scores are another model's, ignored", path=str(path), digest=of)
        return None
    return Reference.of(values, lengths)


def write_reference(
    folder: Path, scores: Sequence[float | None], lengths: Sequence[int], *, digest: str
) -> Path:
    """Store scores as the reference of the model in `folder`, None for an error; the file's path."""
    path = folder / REFERENCE_FILE
    table = {"model_digest": digest, "scores": list(scores), "lengths": list(lengths)}
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(table), encoding="utf-8")
    aside.replace(path)
    return path


@dataclass(slots=True)
class _Watched:
    digest: str
    watcher: Watcher
    series: Series
    lock: threading.Lock = field(default_factory=threading.Lock)


class DriftMonitor:
    """The watchers of all models, with their gauges and log lines. Called by any thread."""

    def __init__(self, spec: DriftSpec) -> None:
        self._spec = spec
        self._models: dict[str, _Watched] = {}

    def opened(self, model: str, digest: str, folder: Path | None = None) -> None:
        """A source stands behind the name: a new reference begins, or is read from the model's folder."""
        if not self._spec.enabled:
            return
        reference = None
        try:
            reference = None if folder is None else read_reference(folder, digest)
        except InvalidInput as error:
            # The model itself is sound; the watch gathers a reference of its own.
            _log.warning("reference scores cannot be read", model=model, error=str(error))
        self.closed(model)
        self._models[model] = _Watched(digest, Watcher(self._spec, reference), Series(model))

    def closed(self, model: str) -> None:
        """Nothing stands behind the name any more."""
        watched = self._models.pop(model, None)
        if watched is not None:
            watched.series.drop()

    def answered(
        self, model: str, digest: str, rows: Sequence[ScoreRow], outcomes: Sequence[ScoreOutcome]
    ) -> None:
        """Rows have been scored. Answers of a model that was swapped meanwhile are left out.

        Length is in characters of the completion, or ids where a row came as ids.
        """
        watched = self._models.get(model)
        if watched is None or watched.digest != digest:
            return
        values = [math.nan if outcome.value is None else outcome.value for outcome in outcomes]
        lengths = [len(row.completion) if row.ids is None else len(row.ids.completion) for row in rows]
        with watched.lock:
            reports = watched.watcher.add(values, lengths)
            if reports:
                _show(watched.series, reports[-1])
        for report in reports:
            _tell(model, self._spec, report)


def _show(series: Series, report: Report) -> None:
    series.of(PSI).set(report.distances["psi"])
    for window, shown in (("reference", report.reference), ("current", report.window)):
        series.of(ROWS, window).set(shown.rows)
        series.of(MEAN, window).set(shown.mean)
        series.of(VARIANCE, window).set(shown.variance)
        series.of(LENGTH_CORRELATION, window).set(shown.length_correlation)
        series.of(ERROR_SHARE, window).set(shown.error_share)
    for kind in KINDS:
        series.of(ALARM, kind).set(kind in report.alarms)


def _tell(model: str, spec: DriftSpec, report: Report) -> None:
    """One line when an alarm begins, one when it ends."""
    for kind in KINDS:
        if kind in report.began or kind in report.ended:
            say = _log.warning if kind in report.began else _log.info
            say(
                "drift" if kind in report.began else "drift is over",
                model=model,
                kind=kind,
                distance=report.distances[kind],
                bound=getattr(spec, f"{kind}_alarm"),
                mean=report.window.mean,
                reference_mean=report.reference.mean,
            )
