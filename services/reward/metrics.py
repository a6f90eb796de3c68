"""Prometheus metrics of scoring. Knows what is counted and under which names, not who counts.

Labels are bounded: `model` is a name of the table from the moment that it is opened until it is closed, `outcome` a
gRPC status, `cause` a name of the error tree, `phase` one of four words. What is heard of other names is dropped.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any, Final, Literal

from prometheus_client import Counter, Gauge, Histogram

from services.common import errors
from services.reward.batching import BatchFacts
from services.reward.rewards.base import ScoreOutcome

Phase = Literal["tokenise", "queue", "model", "total"]
Queued = Callable[[], tuple[int, int]]

QUEUE_ROWS = Gauge("trimtab_reward_queue_rows", "Rows that wait for the model.", ["model"])
QUEUE_TOKENS = Gauge("trimtab_reward_queue_tokens", "Tokens that wait for the model.", ["model"])
QUEUE_LIMIT_ROWS = Gauge("trimtab_reward_queue_limit_rows", "Rows that may wait for the model.", ["model"])
MODEL_INFO = Gauge(
    "trimtab_reward_model_info", "1 for what stands behind a name.", ["model", "kind", "digest"]
)
SWAPS = Counter("trimtab_reward_swaps", "Times that another source was put behind the name.", ["model"])
BATCH_ROWS = Histogram(
    "trimtab_reward_batch_rows",
    "Rows of one forward pass, the same ones counted each.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
)
BATCH_TOKENS = Histogram(
    "trimtab_reward_batch_tokens",
    "Tokens of one forward pass, without padding.",
    ["model"],
    buckets=(16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 262144),
)
PADDING_TOKENS = Counter("trimtab_reward_padding_tokens", "Padding in forward passes.", ["model"])
DUPLICATE_ROWS = Counter(
    "trimtab_reward_duplicate_rows", "Rows not run, being the same as another of their batch.", ["model"]
)
PHASE_SECONDS = Histogram(
    "trimtab_reward_phase_seconds",
    "tokenise: of a call; queue: of the oldest row of a batch; model: of a batch; total: of a call.",
    ["model", "phase"],
    buckets=(0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
ROWS = Counter(
    "trimtab_reward_rows", "Rows answered: ok, or the status of their error.", ["model", "outcome"]
)
ERRORS = Counter(
    "trimtab_reward_errors", "Rows that have no score, by the kind of their error.", ["model", "cause"]
)

BY_MODEL: Final[tuple[Any, ...]] = (
    QUEUE_ROWS,
    QUEUE_TOKENS,
    QUEUE_LIMIT_ROWS,
    MODEL_INFO,
    SWAPS,
    BATCH_ROWS,
    BATCH_TOKENS,
    PADDING_TOKENS,
    DUPLICATE_ROWS,
    PHASE_SECONDS,
    ROWS,
    ERRORS,
)


class Series:
    """The label sets of one model, made when first needed, all taken away together. For any thread."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._made: dict[tuple[Any, tuple[str, ...]], Any] = {}
        self._lock = threading.Lock()
        self._gone = False

    def of(self, metric: Any, *labels: str) -> Any:
        """The child of `metric` for this model and further labels; after drop(), one that nobody sees."""
        child = self._made.get((metric, labels))
        return child if child is not None else self._make(metric, labels)

    def drop(self) -> None:
        """Take all of them off the page. A thread that still holds one counts into the void."""
        with self._lock:
            self._gone = True
            for metric, labels in list(self._made):
                self._remove(metric, labels)

    def forget(self, metric: Any) -> None:
        """Take this metric's label sets off the page."""
        with self._lock:
            for key in [key for key in self._made if key[0] is metric]:
                self._remove(*key)
                del self._made[key]

    def _make(self, metric: Any, labels: tuple[str, ...]) -> Any:
        with self._lock:
            child = metric.labels(self._model, *labels)
            if self._gone:
                self._remove(metric, labels)
            else:
                self._made[metric, labels] = child
            return child

    def _remove(self, metric: Any, labels: tuple[str, ...]) -> None:
        metric.remove(self._model, *labels)


class ScoringMetrics:
    """The metrics of every model of the table. Called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, Series] = {}

    def opened(
        self, model: str, *, kind: str, digest: str, queued: Queued | None = None, limit_rows: int = 0
    ) -> None:
        """A source stands behind `model` from now on. `queued` tells the rows and tokens that wait for it.

        A second time for the same name is a swap.
        """
        with self._lock:
            again = model in self._models
            series = self._models.setdefault(model, Series(model))
        series.of(SWAPS).inc(1 if again else 0)
        series.forget(MODEL_INFO)
        series.of(MODEL_INFO, kind, digest).set(1)
        for gauge in (QUEUE_ROWS, QUEUE_TOKENS, QUEUE_LIMIT_ROWS):
            series.forget(gauge)
        if queued is not None:
            ask = queued
            series.of(QUEUE_ROWS).set_function(lambda: ask()[0])
            series.of(QUEUE_TOKENS).set_function(lambda: ask()[1])
            series.of(QUEUE_LIMIT_ROWS).set(limit_rows)

    def closed(self, model: str) -> None:
        """Nothing stands behind the name any more: its series end."""
        with self._lock:
            series = self._models.pop(model, None)
        if series is not None:
            series.drop()

    def batch(self, model: str, facts: BatchFacts) -> None:
        """A forward pass has ended."""
        if (series := self._models.get(model)) is None:
            return
        series.of(BATCH_ROWS).observe(facts.rows)
        series.of(BATCH_TOKENS).observe(facts.tokens)
        series.of(DUPLICATE_ROWS).inc(facts.rows - facts.distinct)
        series.of(PHASE_SECONDS, "queue").observe(facts.waited_seconds)
        series.of(PHASE_SECONDS, "model").observe(facts.run_seconds)

    def padded(self, model: str, tokens: int) -> None:
        """A forward pass had this much padding. Packed models never say this."""
        if (series := self._models.get(model)) is not None:
            series.of(PADDING_TOKENS).inc(tokens)

    def phase(self, model: str, phase: Phase, seconds: float) -> None:
        """A phase of a call or batch has ended."""
        if (series := self._models.get(model)) is not None:
            series.of(PHASE_SECONDS, phase).observe(seconds)

    def rows(self, model: str, outcomes: Sequence[ScoreOutcome]) -> None:
        """Rows have been answered, each with a score or an error of its own."""
        if (series := self._models.get(model)) is None:
            return
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        if len(failed) < len(outcomes):
            series.of(ROWS, "ok").inc(len(outcomes) - len(failed))
        _count(series, failed)

    def failed(self, model: str, rows: int, error: BaseException) -> None:
        """A call has failed as a whole, and `rows` rows with it."""
        if (series := self._models.get(model)) is not None:
            _count(series, [error] * rows)


def _count(series: Series, failed: Sequence[BaseException]) -> None:
    for (status, cause), number in Tally((status_of(error), cause_of(error)) for error in failed).items():
        series.of(ROWS, status).inc(number)
        series.of(ERRORS, cause).inc(number)


def status_of(error: BaseException) -> str:
    """The gRPC status of an error, as it goes over the wire."""
    if isinstance(error, CancelledError | asyncio.CancelledError):
        return "CANCELLED"
    return error.status if isinstance(error, errors.TrimtabError) else "INTERNAL"


def cause_of(error: BaseException) -> str:
    """The nearest class of the error tree, in snake_case: bounded, whatever a source derives from it."""
    for kind in type(error).__mro__:
        if kind.__module__ == errors.__name__:
            return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    return status_of(error).lower()
