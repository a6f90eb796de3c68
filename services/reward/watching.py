"""Everyone who watches scoring, behind one Observer: metrics, drift, request log. Owns none of their figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from services.common import tracing
from services.reward.batching import BatchFacts
from services.reward.drift import DriftSpec
from services.reward.drift_monitor import DriftMonitor
from services.reward.metrics import ScoringMetrics
from services.reward.request_log import RequestLog, RequestLogSpec
from services.reward.rewards.base import Caller, RewardSource, ScoreRow
from services.reward.scoring import Scored


@runtime_checkable
class HasQueue(Protocol):
    """A source in front of which rows wait."""

    @property
    def queued(self) -> tuple[int, int]:
        """Rows and tokens that wait."""
        ...


@runtime_checkable
class HasFolder(Protocol):
    """A source that was read from a folder."""

    @property
    def folder(self) -> Path:
        """The folder."""
        ...


class Watch:
    """See observing.py Observer; and what the table of models tells it."""

    def __init__(self, drift: DriftSpec, request_log: RequestLogSpec, *, limit_rows: int) -> None:
        self._metrics = ScoringMetrics()
        self._drift = DriftMonitor(drift)
        self._log = RequestLog(request_log)
        self._limit_rows = limit_rows

    def opened(self, model: str, source: RewardSource) -> None:
        """See observing.py. A model's folder may hold reference_scores.json."""
        self._drift.opened(model, source.digest, source.folder if isinstance(source, HasFolder) else None)
        queued = (lambda: source.queued) if isinstance(source, HasQueue) else None
        self._metrics.opened(
            model, kind=source.kind, digest=source.digest, queued=queued, limit_rows=self._limit_rows
        )

    def closed(self, model: str) -> None:
        """Nothing stands behind the name any more."""
        self._metrics.closed(model)
        self._drift.closed(model)

    def batch(self, model: str, facts: BatchFacts) -> None:
        """See Observer."""
        self._metrics.batch(model, facts)

    def padded(self, model: str, tokens: int) -> None:
        """See Observer."""
        self._metrics.padded(model, tokens)

    def tokenised(self, model: str, seconds: float) -> None:
        """See Observer."""
        self._metrics.phase(model, "tokenise", seconds)

    def answered(self, scored: Scored, rows: Sequence[ScoreRow], caller: Caller, seconds: float) -> None:
        """See Observer. On the caller's thread: its request id is still known there."""
        self._metrics.phase(scored.name, "total", seconds)
        self._metrics.rows(scored.name, scored.outcomes)
        self._drift.answered(scored.name, scored.digest, rows, scored.outcomes)
        self._log.offer(
            scored.name,
            scored.digest,
            rows,
            scored.outcomes,
            client=caller.client,
            request_id=tracing.request_id(),
        )

    def failed(self, model: str, rows: int, error: BaseException) -> None:
        """A call has failed as a whole: refused, expired, cancelled."""
        self._metrics.failed(model, rows, error)

    def close(self) -> None:
        """Write what waits. May take seconds."""
        self._log.close()
