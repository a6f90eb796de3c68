"""From what two scrapes of a reward model's replicas counted to what the planner is given."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.cluster.control.answers import service_figures
from orchestrator.cluster.control.pods import PodView
from orchestrator.cluster.control.service_meter import (
    ServiceFigures,
    ServiceMeter,
    ServiceScrape,
    busy_share,
)
from orchestrator.planning.observed import ReplicaState, ServiceMetrics, ServiceObserved
from services.reward.batching import BatchFacts
from services.reward.metrics import ScoringMetrics

NOW = datetime(2026, 1, 2, tzinfo=UTC)
A = PodView(name="a", ready=True, created=NOW - timedelta(minutes=9))
B = replace(A, name="b")
FIRST = ServiceFigures(busy_seconds=100, rows=5000, refused=10, passes=200, tokens=90_000, waiting=40)
LATER = ServiceFigures(busy_seconds=109, rows=5600, refused=40, passes=212, tokens=102_000, waiting=70)
PAGE = """\
trimtab_reward_model_info{digest="blake3:ab",kind="model",model="hh"} 1.0
trimtab_reward_model_info{digest="blake3:cd",kind="model",model="shadow"} 1.0
trimtab_reward_rows_total{model="hh",outcome="ok"} 90.0
trimtab_reward_rows_total{model="hh",outcome="INVALID_ARGUMENT"} 10.0
trimtab_reward_rows_total{model="hh",outcome="RESOURCE_EXHAUSTED"} 7.0
trimtab_reward_batch_rows_count{model="hh"} 12.0
trimtab_reward_batch_rows_sum{model="hh"} 100.0
trimtab_reward_batch_rows_count{model="shadow"} 12.0
trimtab_reward_batch_tokens_sum{model="hh"} 4000.0
trimtab_reward_batch_tokens_sum{model="shadow"} 4000.0
trimtab_reward_phase_seconds_sum{model="hh",phase="model"} 3.0
trimtab_reward_phase_seconds_sum{model="shadow",phase="model"} 2.0
trimtab_reward_phase_seconds_sum{model="hh",phase="total"} 44.0
trimtab_reward_queue_rows{model="hh"} 5.0
trimtab_grpc_calls_in_flight{method="/trimtab.reward.v1.RewardService/Score"} 3.0
trimtab_grpc_calls_in_flight{method="/grpc.health.v1.Health/Watch"} 9.0
trimtab_http_requests_in_flight 2.0
trimtab_draining 1.0
"""


def look(meter: ServiceMeter, at: float, pods: dict[str, ServiceFigures], *views: PodView) -> ServiceObserved:
    return meter.observed(len(views), views, ServiceScrape(at=at, pods=pods), NOW)


def test_a_reward_services_page() -> None:
    """What a shadow computes is work of the replica; what is refused was not answered; health is no call."""
    assert service_figures(PAGE) == ServiceFigures(
        busy_seconds=5.0,
        rows=100,
        refused=7,
        passes=24,
        tokens=8000,
        waiting=5,
        calls=5,
        draining=True,
        revision="blake3:ab",
        digests={"hh": "blake3:ab", "shadow": "blake3:cd"},
    )


def test_a_rule_has_no_passes() -> None:
    """The time of its calls is what it costs."""
    page = "\n".join(line for line in PAGE.splitlines() if "batch" not in line)
    figures = service_figures(page)
    assert figures is not None
    assert (figures.busy_seconds, figures.passes) == (44.0, 0)


def test_the_page_of_our_own_service_is_understood() -> None:
    """The names here and there are the same."""
    from prometheus_client import generate_latest

    metrics = ScoringMetrics()
    metrics.opened("test", kind="model", digest="blake3:ff", queued=lambda: (9, 900), limit_rows=10)
    before = service_figures(generate_latest().decode())
    metrics.batch("test", BatchFacts(rows=8, distinct=8, tokens=640, waited_seconds=0.1, run_seconds=0.5))
    after = service_figures(generate_latest().decode())
    metrics.closed("test")
    assert before is not None
    assert after is not None
    assert after.digests["test"] == "blake3:ff"
    assert (after.passes - before.passes, after.tokens - before.tokens) == (1, 640)
    assert after.waiting >= 9


def test_another_page_is_none() -> None:
    """A stage worker that is no reward service, or no page at all."""
    assert service_figures('trimtab_stage_held_groups{stage="policy"} 1.0\n') is service_figures("") is None


def test_an_interval_is_the_difference() -> None:
    """The first look of an operator at a service of hours ago learns what waits, and no rate."""
    meter = ServiceMeter()
    first = look(meter, 0, {"a": FIRST}, A).metrics
    assert first == ServiceMetrics(seconds=0, busy_seconds=0, rows=0, waiting=40)
    seen = look(meter, 15, {"a": LATER}, A)
    assert seen.metrics == ServiceMetrics(
        seconds=15, busy_seconds=9, rows=600, refused=30, passes=12, tokens=12_000, waiting=70, grown=30
    )
    assert busy_share(seen) == pytest.approx(0.6)


def test_one_that_is_new_or_began_anew_counts_from_zero() -> None:
    """Its counts are all of this interval."""
    meter = ServiceMeter()
    look(meter, 0, {"a": FIRST}, A)
    began = ServiceFigures(busy_seconds=2, rows=100, passes=3, tokens=2000)
    both = look(meter, 15, {"a": began, "b": began}, A, B).metrics
    assert both is not None
    assert (both.busy_seconds, both.rows, both.passes) == (4, 200, 6)


def test_one_that_does_not_answer_is_taken_to_do_what_the_others_do() -> None:
    """Half of them is enough; fewer are lost metrics, with their number."""
    meter, third = ServiceMeter(), replace(A, name="c")
    look(meter, 0, {"a": FIRST, "b": FIRST}, A, B)
    half = look(meter, 15, {"a": LATER}, A, B).metrics
    assert half is not None
    assert (half.rows, half.waiting) == (1200, 140)
    lost = look(meter, 30, {"a": LATER}, A, B, third)
    assert (lost.metrics, lost.lost) == (None, "2 of 3 replicas do not answer")


def test_nobody_to_ask_is_not_blind() -> None:
    """At zero replicas, or while the first is on its way."""
    assert look(ServiceMeter(), 0, {}).metrics == ServiceMetrics(seconds=0, busy_seconds=0, rows=0)
    starting = replace(A, ready=False)
    assert look(ServiceMeter(), 0, {}, starting).role.replicas[0].state is ReplicaState.STARTING


@pytest.mark.parametrize(
    ("marked_for", "said", "held"),
    [
        (None, replace(FIRST, calls=2), 42),
        (0, replace(FIRST, waiting=0), 1),
        (0, replace(FIRST, waiting=0, draining=True), 0),
        (30, replace(FIRST, waiting=0, calls=2, draining=True), 2),
        (30, None, 1),
        (120, replace(FIRST, calls=2, draining=True), 0),
        (120, None, 0),
    ],
)
def test_what_a_replica_holds(marked_for: float | None, said: ServiceFigures | None, held: int) -> None:
    """Calls and rows. A marked one is empty when it says that it is marked and has none, or after two minutes.

    A caller may keep an old connection for minutes: SIGTERM sends it away, and lets it have its answer.
    """
    draining = None if marked_for is None else NOW - timedelta(seconds=marked_for)
    pod = replace(A, draining=draining, ready=draining is None)
    seen = look(ServiceMeter(), 0, {} if said is None else {"a": said}, pod)
    assert seen.role.replicas[0].held_groups == held
