"""Auto of a RewardModel: what is measured of its replicas, what is decided, what is written of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.cluster.control.insight import Insight, RoleInsight
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.control.service_meter import ServiceFigures
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, running
from tests.unit.orchestrator.cluster.objects import MODEL, RUN, changed

AUTO = changed(MODEL, scaling={"mode": "Auto", "min": 1, "max": 6, "poolLimit": 6})
SECONDS = 15.0


class Serving:
    """A reward model with pods, and what each of them is asked in an interval."""

    def __init__(self, harness: Harness, pods: int) -> None:
        self.harness = harness
        self._deployment = harness.get("Deployment", "hh")
        self.names = [f"hh-{at}" for at in range(pods)]
        for name in self.names:
            harness.add_pod(self._deployment, name, running())
        if pods > 1:
            self.harness.api.merge(
                Ref("Deployment", harness.namespace, "hh"), {"spec": {"replicas": pods}}, "test", "scale"
            )
        self.said = dict.fromkeys(self.names, ServiceFigures(busy_seconds=0, rows=0))

    def interval(
        self, rate: float, each: float = 0.01, waiting: int = 0, told: dict[str, ServiceFigures] | None = None
    ) -> float | None:
        """One interval later: `rate` rows/s in all, each `each` seconds of a replica, shared by all of them."""
        self.harness.clock.advance(SECONDS)
        rows = round(rate * SECONDS / len(self.names))
        for name, before in self.said.items():
            self.said[name] = replace(
                before,
                busy_seconds=before.busy_seconds + rows * each,
                rows=before.rows + rows,
                passes=before.passes + max(1, rows // 32),
                tokens=before.tokens + 100 * rows,
                waiting=waiting,
                calls=1,
            )
        self.harness.probe.services_say = self.said | (told or {})
        return self.look()

    def look(self) -> float | None:
        self.harness.look()
        return self.harness.services.handle(Ref("RewardModel", self.harness.namespace, "hh"))

    @property
    def replicas(self) -> int:
        return self.harness.replicas("hh")

    @property
    def status(self) -> dict[str, Any]:
        self.harness.settle("hh", "RewardModel")
        found: dict[str, Any] = self.harness.get("RewardModel", "hh")["status"]
        return found

    @property
    def ready(self) -> tuple[str, str]:
        return self.harness.conditions("hh", "RewardModel")["ScalingReady"]

    def marked(self) -> list[str]:
        return [
            name
            for name in self.names
            if "trimtab.dev/drain" in (self.harness.get("Pod", name)["metadata"].get("annotations") or {})
        ]


def serving(harness: Harness, pods: int = 1, model: dict[str, Any] = AUTO) -> Serving:
    harness.submit(model)
    harness.settle("hh", "RewardModel")
    return Serving(harness, pods)


def test_more_is_asked_than_one_replica_answers(harness: Harness, faulty: KubeServer) -> None:
    """250 rows/s of 10 ms keep 2.5 replicas busy: four are ordered, and the reconciler leaves the number alone."""
    model = serving(harness)
    assert model.interval(0) == SECONDS
    model.interval(250)
    assert model.replicas == 4
    status = model.status
    assert model.replicas == 4
    assert (status["rowsPerSecond"], status["wanted"], status["backlogRows"]) == (250.0, 4, 0)
    assert status["reason"].startswith("3 more")
    assert model.ready == ("True", "Seeing")
    assert any(reason == "Scaled" and note.startswith("hh to 4") for reason, note in harness.events())
    managers = {
        entry["manager"]
        for entry in harness.get("Deployment", "hh")["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }
    assert "trimtab-scaler" in managers


def test_what_waits_stands_in_status_and_counts(harness: Harness, faulty: KubeServer) -> None:
    """A replica that is busy all the time and has a queue: rows that wait are asked for too; pool and max bound it."""
    model = serving(harness)
    model.interval(0)
    model.interval(100, waiting=3000)
    assert model.replicas == 5
    assert model.status["backlogRows"] == 3000
    model.interval(100, waiting=9000)
    assert model.replicas == 6
    assert "max 6" in model.status["reason"]


def test_fewer_are_told_first_and_go_when_they_are_empty(harness: Harness, faulty: KubeServer) -> None:
    """After a quiet while one is marked; it goes when it says that it is marked and has no call in hand."""
    model = serving(harness, pods=3)
    model.interval(0)
    for _ in range(30):
        model.interval(60)
        if model.marked():
            break
    [pod, *_] = model.marked()
    assert model.replicas == 3
    model.interval(60, told={pod: replace(model.said[pod], draining=True)})
    assert model.replicas == 3, "a caller is still there"
    model.interval(60, told={pod: replace(model.said[pod], draining=True, calls=0)})
    assert model.replicas == 2


def test_a_caller_that_stays_does_not_keep_it_for_ever(harness: Harness, faulty: KubeServer) -> None:
    """After two minutes SIGTERM sends it to the others."""
    model = serving(harness, pods=3)
    model.interval(0)
    for _ in range(30):
        model.interval(60)
        if model.marked():
            break
    assert model.marked()
    harness.ahead = timedelta(seconds=121)
    model.interval(60)
    assert model.replicas < 3


def test_lost_metrics_leave_everything_as_it_is(harness: Harness, faulty: KubeServer) -> None:
    """And the condition says why."""
    model = serving(harness, pods=2)
    model.interval(0)
    model.interval(100)
    harness.probe.services_say = {}
    harness.clock.advance(SECONDS)
    model.look()
    assert model.replicas == 2
    status = model.status
    assert "backlogRows" not in status
    assert model.ready == ("False", "StandsStill")
    told = next(one for one in status["conditions"] if one["type"] == "ScalingReady")
    assert told["message"] == "2 of 2 replicas do not answer"


def test_runs_that_refer_to_it_are_counted_before_they_ask(harness: Harness, faulty: KubeServer) -> None:
    """A run that will send 40 groups/s of 8 rows is ordered for, less what it sends now; a suspended one is not."""
    run = changed(
        RUN,
        rewards=[{"stage": "reward", "rewardModelRef": {"name": "hh"}}],
        rollout={"batchGroups": 32, "completionsPerPrompt": 8},
    )
    harness.submit(run)
    harness.settle()
    model = serving(harness)
    roles = {"reward": RoleInsight(groups_per_second=5.0)}
    harness.measured(Insight(roles=roles, planned=40.0))
    model.interval(0)
    model.interval(40)
    # 40 rows/s now, all of this run, and 320 soon: 3.2 replicas that are busy all the time.
    assert model.replicas == 5
    harness.change({"suspend": True})
    for _ in range(12):
        model.interval(40)
    assert model.status["wanted"] == 1


@pytest.mark.parametrize("mode", ["Static", "External"])
def test_others_numbers_are_measured_and_left_alone(harness: Harness, faulty: KubeServer, mode: str) -> None:
    """Status has what is asked and what waits; nothing is scaled, nobody is marked."""
    model = serving(harness, 1, changed(MODEL, scaling={"mode": mode}))
    model.interval(0)
    for _ in range(3):
        model.interval(500, waiting=7)
    assert model.replicas == 1
    status = model.status
    assert status["rowsPerSecond"] == pytest.approx(500, abs=1)
    assert (status["backlogRows"], "wanted" in status) == (7, False)
    assert model.ready == ("True", "Seeing")


def test_a_mark_is_taken_off_when_it_is_auto_no_more(harness: Harness, faulty: KubeServer) -> None:
    """Nobody else would."""
    model = serving(harness, pods=2)
    mark = {"metadata": {"annotations": {"trimtab.dev/drain": "2026-01-02T03:04:05Z"}}}
    harness.api.merge(Ref("Pod", harness.namespace, "hh-1"), mark, "test")
    scaling = {"mode": "Static", "min": None, "max": None, "poolLimit": None}
    harness.change({"replicas": 2, "scaling": scaling}, "hh", "RewardModel")
    model.interval(10)
    assert model.marked() == []


def test_a_model_that_goes_is_forgotten(harness: Harness) -> None:
    """Nothing is measured of it, and nothing kept."""
    model = serving(harness, pods=0)
    assert model.look() == SECONDS
    harness.api.delete(Ref("RewardModel", harness.namespace, "hh"))
    assert model.look() is None
