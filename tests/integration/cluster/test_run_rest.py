"""A TrainingRun that is suspended: its checkpoint first, nothing left running, and back again."""

from __future__ import annotations

import pytest

from orchestrator.cluster.client.errors import Refused
from orchestrator.cluster.control.insight import LearnerFigures
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.kinds.status import CheckpointStatus
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, running
from tests.integration.cluster.runs import ALL_SERVICES, start
from tests.unit.orchestrator.cluster.objects import RUN, changed


def test_suspend_rests_and_resume_brings_back(harness: Harness) -> None:
    """The Job goes, all is at zero, and comes back as it was; no failure is counted."""
    start(harness, changed(RUN, roles__reward__scaling__mode="External"))
    harness.kubectl_scale("helpful-reward", 4)
    harness.change({"suspend": True})
    harness.settle()
    assert "helpful-learner-1" not in harness.names("Job")
    assert {name: harness.replicas(name) for name in ALL_SERVICES} == dict.fromkeys(ALL_SERVICES, 0)
    assert harness.conditions()["Progressing"] == ("False", "Suspended")
    harness.change({"suspend": False})
    harness.bring_job("helpful-learner-2")
    assert harness.replicas("helpful-reward") == 4
    assert harness.replicas("helpful-policy") == 1
    assert harness.status()["restarts"] == 0


def test_a_checkpoint_is_written_before_the_learner_goes(harness: Harness, faulty: KubeServer) -> None:
    """It is asked once, at its pod; an Event says whether it was written, and status which one is the last."""
    start(harness)
    last = CheckpointStatus(step=21, epoch=1, path="/storage/runs/helpful/checkpoints/step-21")
    harness.probe.learners[""] = LearnerFigures(step=21, steps=32, epoch=1, last_checkpoint=last)
    harness.add_pod(harness.get("Job", "helpful-learner-1"), "helpful-learner-1-0-abcde", running())
    harness.change({"suspend": True})
    harness.settle()
    assert harness.probe.checkpoints == ["10.0.0.7:50054"]
    assert "helpful-learner-1" not in harness.names("Job")
    assert ("Suspended", "Job helpful-learner-1 is removed after its checkpoint") in harness.events()
    assert harness.status()["lastCheckpoint"]["path"] == last.path
    assert harness.status()["step"] == 21


def test_policies_go_on_until_the_checkpoint_is_there(harness: Harness, faulty: KubeServer) -> None:
    """Without them the learner would never come to the end of its step."""
    start(harness)
    harness.add_pod(harness.get("Job", "helpful-learner-1"), "helpful-learner-1-0-abcde", running())
    harness.never_writes_checkpoints()
    harness.change({"suspend": True})
    assert harness.reconcile() == 2.0
    assert harness.conditions()["Progressing"][1] != "Suspended"
    assert "helpful-learner-1" in harness.names("Job")
    assert harness.replicas("helpful-policy") == 1
    harness.clock.advance(601)
    harness.settle()
    assert "helpful-learner-1" not in harness.names("Job")
    assert harness.replicas("helpful-policy") == 0


def test_a_checkpoint_of_an_earlier_suspend_does_not_count(harness: Harness, faulty: KubeServer) -> None:
    """Resumed before it was there, and suspended again later: the learner is asked anew."""
    start(harness)
    harness.add_pod(harness.get("Job", "helpful-learner-1"), "helpful-learner-1-0-abcde", running())
    never = harness.never_writes_checkpoints()
    for suspend in (True, False, True):
        harness.change({"suspend": suspend})
        harness.reconcile()
        for one in never.taken[:1]:
            if suspend is False:
                one.set_result(LearnerFigures())
    assert len(never.taken) == 2
    harness.reconcile()
    assert "helpful-learner-1" in harness.names("Job")


def test_a_learner_that_writes_is_waited_for_while_unready(harness: Harness, faulty: KubeServer) -> None:
    """Once it was asked, one look at a pod that is not ready does not take it away."""
    start(harness)
    pod = harness.add_pod(harness.get("Job", "helpful-learner-1"), "helpful-learner-1-0-abcde", running())
    never = harness.never_writes_checkpoints()
    harness.change({"suspend": True})
    harness.reconcile()
    harness.api.merge(Ref.of(pod), {"status": {"conditions": []}}, "kubelet", "status")
    assert harness.reconcile() == 2.0
    assert "helpful-learner-1" in harness.names("Job")
    never.taken[0].set_result(LearnerFigures())
    harness.settle()
    assert "helpful-learner-1" not in harness.names("Job")


def test_a_run_that_is_made_suspended_starts_nothing(harness: Harness) -> None:
    """No Job, no replica; its numbers come with resume."""
    start(
        harness,
        changed(RUN, suspend=True, roles__policy__replicas=2, roles__reward__scaling__mode="External"),
    )
    assert harness.names("Job") == set()
    assert harness.replicas("helpful-policy") == 0
    harness.change({"suspend": False})
    harness.settle()
    assert harness.replicas("helpful-policy") == 2
    assert harness.replicas("helpful-reward") == 1


def test_who_scales_a_run_at_rest_is_told_and_written_against_ever_more_rarely(harness: Harness) -> None:
    """Zero is put back at once three times, then after a back-off; once it stays, all is well again."""
    harness.submit(changed(RUN, roles__reward__scaling__mode="External"))
    harness.settle()
    harness.change({"suspend": True})
    harness.settle()
    seen = []
    for _ in range(6):
        harness.kubectl_scale("helpful-reward", 1)
        harness.settle()
        seen.append(harness.replicas("helpful-reward"))
    assert seen == [0, 0, 0, 1, 1, 1]
    assert harness.conditions()["ScalingReady"] == ("False", "ScaledAtRest")
    harness.clock.advance(31)
    harness.settle()
    assert harness.replicas("helpful-reward") == 0
    harness.clock.advance(61)
    harness.settle()
    assert harness.conditions()["ScalingReady"] == ("True", "Idle")


def test_a_status_that_is_not_taken_does_not_keep_a_run_from_being_suspended(
    harness: Harness, faulty: KubeServer
) -> None:
    """Nothing that suspend removes has to stand in status first."""
    harness.submit(RUN)
    harness.settle()
    faulty.calls.fail(100, 422, verb="patch", resource="trainingruns.trimtab.dev/status")
    harness.change({"suspend": True})
    for _ in range(2):
        with pytest.raises(Refused):
            harness.reconcile()
    faulty.calls.heal()
    assert harness.names("Job") == set()
    assert harness.replicas("helpful-policy") == 0
