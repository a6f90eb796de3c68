"""A TrainingRun: its objects, what is changed in them or in its spec, and its deletion."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.cluster.client.errors import Conflict
from orchestrator.cluster.control.insight import Insight, LearnerFigures
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.operator.applier import SCALER
from services.common.errors import Forbidden
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, eventually
from tests.integration.cluster.runs import ALL_SERVICES, FINE, UNPLACED, gone, start
from tests.unit.orchestrator.cluster.objects import RUN, changed


def test_a_run_gets_all_its_objects(harness: Harness) -> None:
    """Deployments, Services, budgets, policies, the queue with its Secret, and the learner's first attempt."""
    start(harness)
    assert harness.names("Deployment") == ALL_SERVICES
    assert harness.names("PodDisruptionBudget") == ALL_SERVICES
    assert harness.names("StatefulSet") == {"helpful-redis"}
    assert harness.names("Job") == {"helpful-learner-1"}
    assert {"helpful-learner", "helpful-weights", "helpful-redis"} | ALL_SERVICES == harness.names("Service")
    assert "helpful-deny-all" in harness.names("NetworkPolicy")
    keys = {"policy", "reference", "reward", "learner", "operator", "viewer", "users.acl"}
    assert keys == set(harness.get("Secret", "helpful-redis")["data"])
    assert harness.get("TrainingRun", "helpful")["metadata"]["finalizers"] == ["trimtab.dev/drain"]
    assert harness.conditions()["Progressing"] in harness.either(("True", "Starting"), ("False", "Stalled"))
    assert harness.status()["attempt"] == 1
    owners = harness.get("Deployment", "helpful-policy")["metadata"]["ownerReferences"]
    assert owners[0]["uid"] == harness.get("TrainingRun", "helpful")["metadata"]["uid"]


def test_what_is_as_it_should_be_is_not_written(harness: Harness) -> None:
    """A second reconcile moves no resourceVersion and sends no write, and neither does a new process."""
    start(harness)
    before = harness.at_rest()
    harness.settle()
    count = len(harness.wrote)
    harness.reconcile()
    harness.restart()
    harness.reconcile()
    assert harness.wrote[count:] == []
    moved = {key for key, version in harness.versions().items() if version != before[key]}
    assert moved <= {("TrainingRun", "helpful")} if harness.real else moved == set()


def test_a_foreign_change_is_undone(harness: Harness) -> None:
    """A field of ours that somebody changed is put back; one that is not ours stays."""
    start(harness)
    ref = Ref("Service", harness.namespace, "helpful-policy")
    harness.api.merge(ref, {"spec": {"publishNotReadyAddresses": True}}, "somebody")
    harness.api.merge(ref, {"metadata": {"annotations": {"theirs": "1"}}}, "somebody")
    assert harness.settle() == [("Service", "apply")]
    service = harness.get("Service", "helpful-policy")
    assert not service["spec"].get("publishNotReadyAddresses")
    assert service["metadata"]["annotations"]["theirs"] == "1"


def test_kubectl_scale_survives_where_scaling_is_external(harness: Harness) -> None:
    """A number written to /scale stays through reconciles and through an update of the pods."""
    start(harness, changed(RUN, roles__reward__scaling__mode="External"))
    harness.kubectl_scale("helpful-reward", 5)
    assert not [kind for kind, _ in harness.settle() if kind == "Deployment"]
    harness.change({"roles": {"reward": {"image": "other:1"}}})
    harness.settle()
    assert harness.replicas("helpful-reward") == 5
    template = harness.get("Deployment", "helpful-reward")["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "other:1"


def test_kubectl_scale_right_after_a_deployment_is_made_survives(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that somebody writes before the scaler owns it too is theirs, also through the next apply."""
    apply = harness.tools.api.apply

    def scaled_meanwhile(item: Object, manager: str, *rest: str, **more: bool) -> Object:
        if manager == SCALER and item["metadata"]["name"] == "helpful-reward":
            harness.kubectl_scale("helpful-reward", 5)
        return apply(item, manager, *rest, **more)

    monkeypatch.setattr(harness.tools.api, "apply", scaled_meanwhile)
    start(harness, changed(RUN, roles__reward__scaling__mode="External"))
    assert harness.replicas("helpful-reward") == 5
    harness.change({"roles": {"reward": {"image": "other:1"}}})
    harness.settle()
    assert harness.replicas("helpful-reward") == 5


def test_static_holds_its_number(harness: Harness) -> None:
    """Whoever scales a Static role is overruled; a changed spec is carried out."""
    start(harness, changed(RUN, roles__policy__replicas=3))
    assert harness.replicas("helpful-policy") == 3
    harness.kubectl_scale("helpful-policy", 1)
    assert ("Deployment", "scale") in harness.settle()
    assert harness.replicas("helpful-policy") == 3
    harness.change({"roles": {"policy": {"replicas": 4}}})
    harness.settle()
    assert harness.replicas("helpful-policy") == 4


@pytest.mark.parametrize("mode", [{"mode": "External"}, {"mode": "Auto", "min": 1, "max": 8}])
def test_switching_modes_keeps_the_number(harness: Harness, mode: dict[str, Any]) -> None:
    """From Static to another mode nothing moves: the number that is there is where it begins."""
    start(harness, changed(RUN, roles__policy__replicas=3))
    harness.change({"roles": {"policy": {"scaling": mode}}})
    harness.settle()
    assert harness.replicas("helpful-policy") == 3


def test_the_queues_secret_is_never_written_again(harness: Harness) -> None:
    """What stands in it stays, whoever made it, also for a new process."""
    start(harness)
    before = harness.get("Secret", "helpful-redis")
    harness.restart()
    harness.change({"steps": 99})
    harness.settle()
    after = harness.get("Secret", "helpful-redis")
    assert after["data"] == before["data"]
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_a_quota_that_is_busy_is_not_taken_for_an_object(harness: Harness, faulty: KubeServer) -> None:
    """A Conflict at creation with nothing there: told, tried again, and the object is made."""
    for resource in ("secrets", "jobs.batch"):
        faulty.calls.fail(1, 409, verb="create", resource=resource)
    harness.submit(RUN)
    for _ in range(2):
        with pytest.raises(Conflict):
            harness.reconcile()
    harness.settle()
    assert harness.find("Secret", "helpful-redis")
    assert harness.names("Job") == {"helpful-learner-1"}


def test_what_the_spec_no_longer_names_is_deleted(harness: Harness) -> None:
    """A stage that is taken out of the slip takes its objects along; nobody else's are touched."""
    slip = ["policy", "reference", "reward/a", "reward/b"]
    start(harness, changed(RUN, rollout__slip=slip))
    assert "helpful-reward-b" in harness.names("Deployment")
    theirs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "theirs",
            "namespace": harness.namespace,
            "labels": {"trimtab.dev/run": "helpful", "app.kubernetes.io/part-of": "trimtab"},
        },
    }
    harness.api.create(theirs, "somebody")
    harness.change({"rollout": {"slip": slip[:3]}})
    harness.settle()
    assert "helpful-reward-b" not in harness.names("Deployment") | harness.names("Service")
    assert "helpful-reward-a" in harness.names("Deployment")
    assert "theirs" in harness.names("ConfigMap")


def test_an_invalid_spec_touches_nothing(harness: Harness) -> None:
    """Degraded says what is wrong; what runs goes on."""
    start(harness)
    before = harness.at_rest()
    # The schema lets it pass: two numbers. That the first must be the lower one, it cannot say.
    harness.change({"algorithm": {"clipScores": [2.0, 1.0]}, "roles": {"policy": {"image": "other:1"}}})
    harness.settle()
    assert harness.conditions()["Degraded"] == ("True", "SpecInvalid")
    after = harness.versions()
    before.pop(("TrainingRun", "helpful"))
    after.pop(("TrainingRun", "helpful"))
    assert after == before
    harness.change({"algorithm": {"clipScores": [-1.0, 1.0]}})
    harness.settle()
    assert harness.conditions()["Degraded"] in harness.either(FINE, UNPLACED)
    template = harness.get("Deployment", "helpful-policy")["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "other:1"


def test_what_the_server_refuses_holds_up_no_more_than_it_must(harness: Harness, faulty: KubeServer) -> None:
    """The rest is applied, no attempt begins and none is counted; it is told, and mended by itself."""
    harness.submit(RUN)
    for _ in range(3):
        faulty.calls.fail(1, 403, verb="patch", resource="services")
        with pytest.raises(Forbidden):
            harness.reconcile()
    assert harness.names("Job") == set()
    assert harness.names("Deployment") == ALL_SERVICES
    assert harness.conditions()["Degraded"] == ("True", "Refused")
    assert harness.status()["attempt"] == 0
    harness.settle()
    assert harness.names("Job") == {"helpful-learner-1"}
    assert harness.conditions()["Degraded"] == FINE


def test_delete_leaves_nothing_behind(harness: Harness) -> None:
    """Objects, Jobs, Secret: all gone, then the run itself."""
    start(harness)
    harness.api.delete(Ref("TrainingRun", harness.namespace, "helpful"))
    gone(harness)


def test_a_run_made_anew_under_an_old_name_has_none_of_its_figures(harness: Harness) -> None:
    """Whatever was measured is of the one that is gone, also where nobody saw the name free in between."""
    start(harness)
    harness.measured(Insight(learner=LearnerFigures(step=9, steps=32, version="1.9")))
    old = harness.get("TrainingRun", "helpful")
    harness.api.delete(Ref.of(old))

    def ended() -> bool:
        harness.reconcile()
        return harness.find("TrainingRun", "helpful") is None

    eventually(ended)
    # A scrape that was under way puts in what it saw, after all.
    harness.tools.insights.put(Ref.of(old), old["metadata"]["uid"], Insight(learner=LearnerFigures(step=9)))
    start(harness)
    assert harness.status()["step"] == 0
    assert not harness.status().get("version")


def test_figures_that_are_no_numbers_are_left_out(harness: Harness) -> None:
    """No server takes them; what else there is to tell is told."""
    harness.submit(RUN)
    harness.settle()
    figures = LearnerFigures(step=3, steps=32, kl=math.inf, reward=math.nan)
    harness.measured(Insight(learner=figures))
    harness.clock.advance(11)
    harness.settle()
    assert harness.status()["step"] == 3
    assert not {"kl", "reward"} & set(harness.status())
