"""Everyone who watches scoring, behind one Observer: metrics, drift, request log. Owns none of their figures."""

from __future__ import annotations

import threading
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
    """See observing.py Observer; and what the table of models tells it.

    Figures belong to a source and a digest of it. A remote, and a composite over one, may change its digest by itself:
    that is a swap like any other. The digest of `running` follows its moments, and it is the same all the while.
    """

    def __init__(self, drift: DriftSpec, request_log: RequestLogSpec, *, limit_rows: int) -> None:
        self._metrics = ScoringMetrics()
        self._drift = DriftMonitor(drift)
        self._log = RequestLog(request_log)
        self._limit_rows = limit_rows
        self._lock = threading.Lock()
        # name -> what stands behind it, and the digest that its figures are of
        self._behind: dict[str, tuple[RewardSource, str]] = {}

    def opened(self, model: str, source: RewardSource) -> None:
        """See observing.py. A model's folder may hold reference_scores.json."""
        with self._lock:
            self._open(model, source, source.digest)

    def closed(self, model: str) -> None:
        """Nothing stands behind the name any more."""
        with self._lock:
            self._behind.pop(model, None)
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
        self._drift.answered(scored.name, self._figures_of(scored), rows, scored.outcomes)
        self._log.offer(
            scored.name,
            scored.digest,
            rows,
            scored.outcomes,
            client=caller.client,
            request_id=tracing.request_id(),
        )

    def _open(self, model: str, source: RewardSource, digest: str) -> None:
        self._behind[model] = (source, digest)
        self._drift.opened(model, digest, source.folder if isinstance(source, HasFolder) else None)
        queued = (lambda: source.queued) if isinstance(source, HasQueue) else None
        self._metrics.opened(
            model, kind=source.kind, digest=digest, queued=queued, limit_rows=self._limit_rows
        )

    def _figures_of(self, scored: Scored) -> str:
        """The digest among whose figures these rows count; "": they are late, or of several models."""
        with self._lock:
            source = scored.source
            behind, known = self._behind.get(scored.name, (None, ""))
            if behind is not source:
                return ""
            if source.kind == "running":
                return known
            now = source.digest
            if now != known:
                self._open(scored.name, source, now)
            return now if scored.digests == {now} else ""

    def failed(self, model: str, rows: int, error: BaseException) -> None:
        """A call has failed as a whole: refused, expired, cancelled."""
        self._metrics.failed(model, rows, error)

    def close(self) -> None:
        """Write what waits. May take seconds."""
        self._log.close()
