"""A service that is asked: from what its replicas did to their number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.planning.actions import Drain, Scale, Undrain
from orchestrator.planning.observed import (
    Replica,
    ReplicaState,
    RoleObserved,
    ServiceMemory,
    ServiceMetrics,
    ServiceObserved,
)
from orchestrator.planning.serving import (
    ServiceDecision,
    ServiceSpec,
    decide_service,
    learn_service,
    seconds_per_row,
)
from orchestrator.planning.spec import Auto, External, Static

SPEC = ServiceSpec(name="hh", scaling=Auto(1, 8), startup_seconds=60)
SECONDS = 15.0


def ready(count: int, held: int = 1) -> RoleObserved:
    replicas = tuple(Replica(f"hh-{at}", ReplicaState.READY, held_groups=held) for at in range(count))
    return RoleObserved(desired=count, replicas=replicas)


def did(rate: float, each: float, *, tokens: int = 100, full: int = 4000) -> ServiceMetrics:
    """`rate` rows/s answered, each with so many seconds and tokens, in passes of `full` tokens."""
    rows = round(rate * SECONDS)
    return ServiceMetrics(
        seconds=SECONDS,
        busy_seconds=rows * each,
        rows=rows,
        passes=max(1, rows * tokens // full),
        tokens=rows * tokens,
    )


class Service:
    """Decisions one after another, 15 s apart, over a Deployment that does at once as it is told."""

    def __init__(self, spec: ServiceSpec = SPEC, replicas: int = 1) -> None:
        self.spec, self.replicas, self.at, self.memory = spec, replicas, 0.0, ServiceMemory()

    def look(
        self, metrics: ServiceMetrics | None, *, runs_rows: float = 0.0, runs_will: float = 0.0
    ) -> ServiceDecision:
        self.at += SECONDS
        observed = ServiceObserved(
            at=self.at,
            role=ready(self.replicas),
            metrics=metrics,
            runs_rows=runs_rows,
            runs_will=runs_will,
            memory=self.memory,
        )
        decision = decide_service(self.spec, observed, self.at)
        self.memory = decision.memory
        return decision

    def follow(self, metrics: ServiceMetrics, times: int) -> list[int]:
        numbers = []
        for _ in range(times):
            self.replicas = self.look(metrics).wanted
            numbers.append(self.replicas)
        return numbers


def test_as_many_as_are_busy_for_seven_tenths_of_the_time() -> None:
    """200 rows/s of 10 ms keep two replicas busy all the time: 2 / 0.7 are three, ordered at once."""
    decision = Service().look(did(200, 0.01))
    assert decision.load == pytest.approx(2.0)
    assert decision.rows_per_second == pytest.approx(200)
    assert decision.seconds_per_row == pytest.approx(0.01)
    assert (decision.least, decision.enough, decision.wanted) == (3, 4, 3)
    assert decision.actions == (Scale("hh", 3, "2 more: 2 would be busy all the time"),)


@pytest.mark.parametrize("rate", [175, 200, 235])
def test_between_the_two_shares_nothing_is_done(rate: float) -> None:
    """Three replicas that are busy for 58 % to 78 %: neither a burst nor a lull moves anything."""
    decision = Service(replicas=3).look(did(rate, 0.01))
    assert decision.actions == ()
    assert decision.wanted == 3


def test_fewer_after_a_start_ups_time_without_a_break() -> None:
    """A lull of 45 s changes nothing, one of a minute does; then they are told first, for they hold calls."""
    service = Service(replicas=4)
    service.look(did(230, 0.01))
    for _ in range(4):
        assert service.look(did(20, 0.01)).actions == ()
    # Back before the minute is over: it begins anew.
    for _ in range(3):
        service.look(did(300, 0.01))
    held = [service.look(did(20, 0.01)) for _ in range(8)]
    first = next(decision for decision in held if decision.actions)
    assert first.wanted < 4
    assert all(isinstance(action, Drain) for action in first.actions)
    assert held.index(first) >= 4
    assert "held for" in held[held.index(first) - 1].reason


def test_full_passes_say_what_a_replica_can_do() -> None:
    """A row alone costs 50 ms, in a full pass 2 ms: after one busy interval a quiet one wants no second replica."""
    alone = did(14, 0.05, full=100)
    service = Service()
    assert service.look(alone).load == pytest.approx(0.7), "as dear as all that was seen, and no dearer"
    service.look(did(300, 0.002))
    for _ in range(8):
        decision = service.look(alone)
    assert decision.seconds_per_row == pytest.approx(0.002)
    assert decision.load == pytest.approx(14 * 0.002, rel=0.1)


def test_longer_texts_cost_more_in_proportion() -> None:
    """The cost is of tokens: ten times as long, ten times the load, also at a size of pass never seen before."""
    service = Service()
    service.look(did(100, 0.002))
    for _ in range(40):
        decision = service.look(did(20, 0.02, tokens=1000))
    assert decision.seconds_per_row == pytest.approx(0.02, rel=0.1)


def test_another_speed_at_a_known_size_forgets_the_others() -> None:
    """A slower node: what was cheap there once is no measure any more."""
    memory = learn_service(ServiceMemory(), did(100, 0.002), 0)
    memory = learn_service(memory, did(100, 0.004, full=1000), 15)
    slow = learn_service(memory, did(100, 0.012, full=1000), 30)
    assert seconds_per_row(memory) == pytest.approx(0.002)
    assert seconds_per_row(slow) == pytest.approx(0.012)


def test_another_model_is_learned_anew() -> None:
    """Its digest is another: the cost is forgotten, what is asked is not."""
    service = Service()
    service.look(replace(did(100, 0.002), revision="a"))
    decision = service.look(replace(did(100, 0.02), revision="b"))
    assert decision.seconds_per_row == pytest.approx(0.02)
    assert decision.rows_per_second == pytest.approx(100)


def test_what_waits_and_what_is_refused_is_asked_for_too() -> None:
    """A replica that answers 100 rows/s all the time and lets 3,000 more wait is short of help at once."""
    full = did(100, 0.01)
    decision = Service().look(replace(full, waiting=3000, grown=3000, refused=1500))
    # 100 answered, 100 refused (1,500 in 15 s), 200 more waiting each second, and 3,000 to make up for in a minute.
    assert decision.rows_per_second == pytest.approx(400)
    assert decision.load == pytest.approx((400 + 50) * 0.01)
    assert decision.wanted == 7


def test_who_is_refused_and_asks_again_does_not_buy_the_whole_pool() -> None:
    """However often the same rows are refused, they at most double what is asked."""
    decision = Service().look(replace(did(100, 0.01), refused=1_000_000))
    assert decision.rows_per_second == pytest.approx(200)


def test_a_burst_of_one_interval_counts_half() -> None:
    """What is asked is evened out over about two looks."""
    service = Service(replicas=2)
    service.look(did(100, 0.01))
    assert service.look(did(200, 0.01)).rows_per_second == pytest.approx(150)


def test_runs_that_will_ask_are_counted_before_they_do() -> None:
    """Ordered together with their policies; what runs send already is not counted twice."""
    service = Service()
    service.look(did(100, 0.005))
    decision = service.look(did(100, 0.005), runs_rows=60, runs_will=360)
    assert decision.rows_per_second == pytest.approx(400)
    assert decision.wanted == 3
    assert service.look(did(100, 0.005), runs_rows=60, runs_will=20).rows_per_second == pytest.approx(100)


def test_lost_metrics_leave_everything_as_it_is() -> None:
    """With the reason; old ones are lost ones; nothing is learned of it."""
    service = Service(replicas=3)
    before = service.look(did(200, 0.01)).memory
    decision = service.look(None)
    assert (decision.actions, decision.wanted, decision.blind) == ((), 3, "its metrics are lost")
    assert decision.memory == before
    old = ServiceObserved(at=0, role=ready(3), metrics=did(900, 0.01), memory=before)
    assert decide_service(SPEC, old, 121).reason == "stands still: metrics are 121 s old"


@pytest.mark.parametrize(
    ("spec", "limit"),
    [
        (replace(SPEC, scaling=Auto(1, 2)), "max 2"),
        (replace(SPEC, pool_limit=2), "pool limit 2"),
    ],
)
def test_bounds_are_kept_and_told(spec: ServiceSpec, limit: str) -> None:
    """Maximum and pool, whatever the load."""
    decision = Service(spec).look(did(900, 0.01))
    assert (decision.wanted, decision.limits[-1]) == (2, limit)


def test_a_minimum_is_kept_and_told() -> None:
    """Whatever little is asked."""
    decision = Service(replace(SPEC, scaling=Auto(3, 8))).look(did(20, 0.01))
    assert (decision.wanted, decision.limits) == (3, ("min 3",))


def test_nobody_asks_a_service_of_unknown_speed() -> None:
    """It keeps what it has; from zero, runs that will ask bring the first replica."""
    nobody = Service(replicas=2).look(did(0, 0))
    assert (nobody.wanted, nobody.reason) == (2, "nobody has asked yet")
    sleeping = Service(replace(SPEC, scaling=Auto(0, 8)), replicas=0)
    assert sleeping.look(did(0, 0)).actions == ()
    assert sleeping.look(did(0, 0), runs_will=5.0).actions == (Scale("hh", 1, "its speed is not known yet"),)


def test_down_to_zero_only_where_that_is_the_least() -> None:
    """When nobody has asked for a while; the rate fades, and what is left of it is no reason to stay."""
    for least in (0, 1):
        service = Service(replace(SPEC, scaling=Auto(least, 8)))
        service.look(did(20, 0.01))
        assert service.follow(did(0, 0), 40)[-1] == least


def test_one_that_drains_goes_when_empty_and_returns_when_wanted() -> None:
    """Calls in hand keep it; load takes it back before any new one is started."""
    memory = learn_service(ServiceMemory(), did(70, 0.01), 0)
    for held, number in ((3, None), (0, 1)):
        drains = Replica("hh-1", ReplicaState.DRAINING, held_groups=held)
        role = RoleObserved(desired=2, replicas=(*ready(1).replicas, drains))
        observed = ServiceObserved(at=15, role=role, metrics=did(70, 0.01), memory=memory)
        scaled = [
            one.replicas for one in decide_service(SPEC, observed, 15).actions if isinstance(one, Scale)
        ]
        assert scaled == ([] if number is None else [number])
    busy = replace(observed, metrics=did(200, 0.01))
    actions = decide_service(SPEC, busy, 15).actions
    assert isinstance(actions[0], Undrain)


@pytest.mark.parametrize(("scaling", "wanted"), [(External(), 2), (Static(5), 5)])
def test_others_numbers_are_left_alone(scaling: External | Static, wanted: int) -> None:
    """Whoever owns them; nothing is done, whatever is measured."""
    decision = Service(replace(SPEC, scaling=scaling), replicas=2).look(did(900, 0.01))
    assert (decision.actions, decision.wanted) == ((), wanted)


def test_a_scrape_is_learned_once_and_the_same_picture_gives_the_same_plan() -> None:
    """Pure: a second look at one scrape changes nothing."""
    memory = learn_service(ServiceMemory(), did(100, 0.01), 15)
    assert learn_service(memory, did(900, 0.5), 15) == memory
    observed = ServiceObserved(at=30, role=ready(2), metrics=did(150, 0.01), memory=memory)
    assert decide_service(SPEC, observed, 30) == decide_service(SPEC, observed, 30)
