"""Metrics of scoring: what is counted, and that labels never outlive their model."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from services.common.errors import Corrupted, InvalidInput, Overloaded, Unavailable
from services.reward.batching import BatchFacts
from services.reward.metrics import BY_MODEL, ScoringMetrics, Series, cause_of, status_of
from services.reward.rewards.base import ScoreOutcome, SourceClosed


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def series_of(model: str) -> list[str]:
    return [
        sample.name
        for metric in BY_MODEL
        for family in metric.collect()
        for sample in family.samples
        if sample.labels.get("model") == model
    ]


def test_a_batch_is_counted() -> None:
    """One forward pass adds its rows, tokens, duplicates and both waits to the model's own series."""
    metrics = ScoringMetrics()
    metrics.opened("m-batch", kind="model", digest="d1")
    metrics.batch(
        "m-batch", BatchFacts(rows=10, distinct=7, tokens=300, waited_seconds=0.25, run_seconds=0.5)
    )
    metrics.padded("m-batch", 40)
    assert value("trimtab_reward_batch_rows_sum", model="m-batch") == 10
    assert value("trimtab_reward_batch_tokens_sum", model="m-batch") == 300
    assert value("trimtab_reward_duplicate_rows_total", model="m-batch") == 3
    assert value("trimtab_reward_padding_tokens_total", model="m-batch") == 40
    assert value("trimtab_reward_phase_seconds_sum", model="m-batch", phase="queue") == 0.25
    assert value("trimtab_reward_phase_seconds_sum", model="m-batch", phase="model") == 0.5
    metrics.closed("m-batch")


def test_rows_by_outcome_and_cause() -> None:
    """Rows count as ok or by their error's status; a refused call counts all of its rows, by cause."""
    metrics = ScoringMetrics()
    metrics.opened("m-rows", kind="rule", digest="d1")
    bad = ScoreOutcome(error=Corrupted("nan"))
    metrics.rows("m-rows", [ScoreOutcome(value=1.0), bad, ScoreOutcome(value=0.0), bad])
    metrics.failed("m-rows", 32, Overloaded("full"))
    assert value("trimtab_reward_rows_total", model="m-rows", outcome="ok") == 2
    assert value("trimtab_reward_rows_total", model="m-rows", outcome="DATA_LOSS") == 2
    assert value("trimtab_reward_rows_total", model="m-rows", outcome="RESOURCE_EXHAUSTED") == 32
    assert value("trimtab_reward_errors_total", model="m-rows", cause="corrupted") == 2
    assert value("trimtab_reward_errors_total", model="m-rows", cause="overloaded") == 32
    metrics.closed("m-rows")


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (InvalidInput("x"), "INVALID_ARGUMENT", "invalid_input"),
        (SourceClosed("x"), "UNAVAILABLE", "unavailable"),
        (type("Odd", (Unavailable,), {})("x"), "UNAVAILABLE", "unavailable"),
        (ZeroDivisionError(), "INTERNAL", "internal"),
        (asyncio.CancelledError(), "CANCELLED", "cancelled"),
    ],
)
def test_causes_are_names_of_the_error_tree(error: BaseException, status: str, cause: str) -> None:
    """Classes derived elsewhere count under their base, so that the label stays bounded."""
    assert (status_of(error), cause_of(error)) == (status, cause)


def test_queue_is_asked_when_the_page_is_read() -> None:
    """The gauges call back; after a swap they ask the new source, and the swap is counted."""
    metrics = ScoringMetrics()
    waiting = [3, 90]
    metrics.opened(
        "m-queue", kind="model", digest="d1", queued=lambda: (waiting[0], waiting[1]), limit_rows=50
    )
    assert value("trimtab_reward_queue_rows", model="m-queue") == 3
    waiting[:] = [5, 120]
    assert value("trimtab_reward_queue_tokens", model="m-queue") == 120
    assert value("trimtab_reward_queue_limit_rows", model="m-queue") == 50
    assert value("trimtab_reward_swaps_total", model="m-queue") == 0
    metrics.opened("m-queue", kind="rule", digest="d2")
    assert value("trimtab_reward_queue_rows", model="m-queue") is None
    assert value("trimtab_reward_swaps_total", model="m-queue") == 1
    assert value("trimtab_reward_model_info", model="m-queue", kind="model", digest="d1") is None
    assert value("trimtab_reward_model_info", model="m-queue", kind="rule", digest="d2") == 1
    metrics.closed("m-queue")


def test_closed_models_leave_no_series() -> None:
    """After closing nothing of a model is on the page, and what still comes of it brings nothing back."""
    metrics = ScoringMetrics()
    facts = BatchFacts(rows=1, distinct=1, tokens=1, waited_seconds=0, run_seconds=0)
    metrics.opened("m-gone", kind="model", digest="d", queued=lambda: (0, 0), limit_rows=1)
    metrics.batch("m-gone", facts)
    metrics.rows("m-gone", [ScoreOutcome(value=1.0), ScoreOutcome(error=InvalidInput("x"))])
    metrics.phase("m-gone", "total", 0.1)
    assert len(series_of("m-gone")) > 20
    metrics.closed("m-gone")
    metrics.batch("m-gone", facts)
    metrics.rows("m-gone", [ScoreOutcome(value=1.0)])
    metrics.failed("m-gone", 1, Overloaded("full"))
    metrics.phase("m-gone", "total", 0.1)
    metrics.padded("m-gone", 1)
    assert series_of("m-gone") == []


def test_a_late_thread_cannot_revive_a_series() -> None:
    """A label set first needed after the drop counts, but not on the page."""
    series = Series("m-late")
    series.drop()
    series.of(BY_MODEL[-1], "internal").inc()
    assert series_of("m-late") == []


def test_unknown_names_are_no_labels() -> None:
    """A name that was never opened makes no series, whoever asks with it."""
    metrics = ScoringMetrics()
    metrics.failed("m-invented", 1, InvalidInput("x"))
    metrics.rows("m-invented", [ScoreOutcome(value=1.0)])
    assert series_of("m-invented") == []
