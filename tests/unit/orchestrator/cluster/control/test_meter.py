"""From what two scrapes counted to what the planner is given."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.meter import Meter, PodFigures, RolePods, Scrape, idle_share
from orchestrator.cluster.control.pods import PodView
from orchestrator.cluster.kinds.status import RolloutStatus
from orchestrator.planning.observed import ReplicaState, RoleMetrics

NOW = datetime(2026, 1, 2, tzinfo=UTC)
READY = PodView(name="a", ready=True, address="10.0.0.1", created=NOW - timedelta(minutes=9))
ROLE = RolePods(desired=1, pods=[READY], slots=2)
FIRST = Scrape(at=0, pods={"a": PodFigures(busy_seconds=100, groups=50)}, backlog={"policy": 7, "learner": 3})


def metrics(meter: Meter, scrape: Scrape, role: RolePods = ROLE) -> RoleMetrics | None:
    return meter.observed({"policy": role}, scrape, NOW).roles["policy"].metrics


def test_an_interval_is_the_difference() -> None:
    """The first look of an operator at a pod that has worked for hours counts nothing."""
    meter = Meter()
    assert metrics(meter, FIRST) == RoleMetrics(busy_seconds=0, completed_groups=0, backlog_groups=7)
    later = replace(FIRST, at=15, pods={"a": PodFigures(busy_seconds=112, groups=56)}, backlog={"policy": 9})
    assert metrics(meter, later) == RoleMetrics(busy_seconds=12, completed_groups=6, backlog_groups=9)


def test_a_pod_that_is_new_or_began_anew_counts_from_zero() -> None:
    """Its counts are all of this interval."""
    meter = Meter()
    metrics(meter, FIRST)
    restarted = replace(FIRST, at=15, pods={"a": PodFigures(busy_seconds=4, groups=2)})
    assert metrics(meter, restarted) == RoleMetrics(busy_seconds=4, completed_groups=2, backlog_groups=7)
    two = RolePods(desired=2, pods=[READY, replace(READY, name="b")])
    joined = replace(
        FIRST,
        at=30,
        pods={"a": PodFigures(busy_seconds=5, groups=3), "b": PodFigures(busy_seconds=6, groups=3)},
    )
    assert metrics(meter, joined, two) == RoleMetrics(busy_seconds=7, completed_groups=4, backlog_groups=7)


@pytest.mark.parametrize("lost", [{"pods": {}}, {"backlog": None}, {"backlog": {"reward": 1}}])
def test_what_did_not_answer_is_lost(lost: dict[str, object]) -> None:
    """No pod, or no queue: the planner stands still rather than guess."""
    assert metrics(Meter(), replace(FIRST, **lost)) is None  # type: ignore[arg-type]


def test_a_role_without_pods_is_not_blind() -> None:
    """At zero there is nobody to ask, and the backlog says enough."""
    none = RolePods(desired=0)
    assert metrics(Meter(), replace(FIRST, pods={}), none) == RoleMetrics(
        busy_seconds=0, completed_groups=0, backlog_groups=7
    )


@pytest.mark.parametrize(
    ("pod", "state"),
    [
        (READY, ReplicaState.READY),
        (replace(READY, ready=False), ReplicaState.STARTING),
        (replace(READY, draining=NOW), ReplicaState.DRAINING),
        (replace(READY, draining=NOW, reclaimed=True), ReplicaState.RECLAIMED),
    ],
)
def test_states_of_replicas(pod: PodView, state: ReplicaState) -> None:
    """A notice outweighs a mark of ours, that outweighs readiness."""
    observed = Meter().observed({"policy": replace(ROLE, pods=[pod])}, FIRST, NOW)
    assert [replica.state for replica in observed.roles["policy"].replicas] == [state]


def test_pods_that_go_are_left_out() -> None:
    """They are not in the Deployment's number any more."""
    gone = [replace(READY, deleting=NOW), replace(READY, ended=True)]
    assert Meter().observed({"policy": replace(ROLE, pods=gone)}, FIRST, NOW).roles["policy"].replicas == ()


BUSY = PodFigures(busy_seconds=1, groups=1, held=4)
IDLE = replace(BUSY, held=0)


@pytest.mark.parametrize(
    ("marked_for", "said", "held"),
    [
        (None, BUSY, 4),
        (None, IDLE, 0),
        (None, None, 0),
        (0, BUSY, 4),
        (0, IDLE, 1),
        (0, replace(IDLE, draining=True), 0),
        (119, IDLE, 1),
        (119, None, 1),
        (120, BUSY, 0),
        (120, None, 0),
    ],
)
def test_what_a_replica_holds(marked_for: float | None, said: PodFigures | None, held: int) -> None:
    """As it says. A marked one is empty once it says that it drains: before, it may take work at any moment.

    Who never says so (no scrape, an image without the mark) counts as empty after a while: SIGTERM makes it hand back.
    """
    draining = None if marked_for is None else NOW - timedelta(seconds=marked_for)
    role = replace(ROLE, pods=[replace(READY, draining=draining)])
    scrape = replace(FIRST, pods={} if said is None else {"a": said})
    assert Meter().observed({"policy": role}, scrape, NOW).roles["policy"].replicas[0].held_groups == held


def test_start_up_is_measured() -> None:
    """The median of the pods that are there, from creation to readiness."""
    pods = [
        replace(READY, name=str(seconds), created=NOW, ready_since=NOW + timedelta(seconds=seconds))
        for seconds in (60, 70, 900)
    ]
    observed = Meter().observed({"policy": replace(ROLE, pods=pods)}, FIRST, NOW)
    assert observed.roles["policy"].startup_seconds == 70


def test_a_step_is_counted_once() -> None:
    """Two looks within one step learn one step time; trained and discarded are differences."""
    meter = Meter()
    counts = RolloutStatus(trained=32, stale=2, failed=1)
    figures = LearnerFigures(step=1, step_seconds=9.0, rollouts=counts)
    seen = []
    for at, step, more in ((0, 1, 0), (15, 1, 0), (30, 2, 32)):
        now = replace(
            figures, step=step, rollouts=RolloutStatus(trained=32 + more, stale=2 + more // 16, failed=1)
        )
        seen.append(meter.observed({}, replace(FIRST, at=at, learner=now), NOW).learner)
    first, second, third = seen
    assert first is not None
    assert second is not None
    assert third is not None
    assert [one.step_seconds for one in (first, second, third)] == [(9.0,), (), (9.0,)]
    assert (first.trained_groups, second.trained_groups, third.trained_groups) == (0, 0, 32)
    assert (third.discarded_groups, third.ready_groups) == (2, 3)


def test_for_how_long_nobody_serves_a_stage() -> None:
    """From the first look at which groups waited and nobody was ready; over as soon as somebody is."""
    meter, nobody = Meter(), replace(ROLE, pods=[replace(READY, ready=False)])
    assert [meter.unserved_seconds("policy", nobody, replace(FIRST, at=at)) for at in (5, 20, 65)] == [
        0,
        15,
        60,
    ]
    assert meter.unserved_seconds("policy", ROLE, replace(FIRST, at=80)) == 0
    assert meter.unserved_seconds("policy", nobody, replace(FIRST, at=95)) == 0


def test_idle_share() -> None:
    """Of all slots of the replicas that are ready."""
    measured = RoleMetrics(busy_seconds=12, completed_groups=6, backlog_groups=0)
    assert idle_share(ROLE, measured, 15) == pytest.approx(0.6)
    assert idle_share(ROLE, measured, 0) is None
    assert idle_share(ROLE, None, 15) is None
    assert idle_share(replace(ROLE, pods=[]), measured, 15) is None
