"""Attempts of a TrainingRun: one after the other, with jobs before them, to the end of the run."""

from __future__ import annotations

from datetime import timedelta

import pytest

from orchestrator.cluster.client.errors import Refused
from orchestrator.cluster.control.insight import Insight, LearnerFigures
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.kinds.status import CheckpointStatus
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, api_time, eventually, running
from tests.integration.cluster.runs import ALL_SERVICES, FINE, UNPLACED, gone, start
from tests.unit.orchestrator.cluster.objects import RUN, changed


def test_a_failed_attempt_is_followed_by_the_next(harness: Harness) -> None:
    """The failure is counted once, told in an Event, and attempt 2 begins under the same configuration."""
    start(harness)
    harness.end_job("helpful-learner-1", "Failed", "exit code 1")
    harness.bring_job("helpful-learner-2")
    status = harness.status()
    assert (status["attempt"], status["restarts"], status["failures"]) == (2, 1, 1)
    assert harness.conditions()["Degraded"] in harness.either(("True", "LearnerRestarts"), UNPLACED)
    assert any(reason == "LearnerFailed" and "attempt 1" in note for reason, note in harness.events())


def test_the_back_off_outlives_pods_and_operator(harness: Harness) -> None:
    """Whoever looks, and however little is left of the attempt: the next one begins when its time has come."""
    start(harness)
    harness.end_job("helpful-learner-1", "Failed", "exit code 1")
    harness.settle()
    assert harness.names("Job") == {"helpful-learner-1"}
    assert harness.status()["restarts"] == 1
    harness.restart()
    left = harness.reconcile()
    assert left is not None
    assert 0 < left <= 5
    assert harness.names("Job") == {"helpful-learner-1"}
    harness.bring_job("helpful-learner-2")
    assert harness.status()["restarts"] == 1


def test_too_many_failures_without_a_checkpoint_end_the_run(harness: Harness) -> None:
    """restartLimit counts failures in a row; a checkpoint between them begins anew."""
    start(harness, changed(RUN, restartLimit=1))
    for attempt in (1, 2):
        harness.bring_job(f"helpful-learner-{attempt}")
        harness.end_job(f"helpful-learner-{attempt}", "Failed")
        harness.settle()
    assert harness.conditions()["Finished"] == ("True", "Failed")
    assert harness.conditions()["Degraded"] == ("True", "RunFailed")
    assert {name: harness.replicas(name) for name in ALL_SERVICES} == dict.fromkeys(ALL_SERVICES, 0)
    # Whoever wants to know why finds the last one's pods.
    assert harness.names("Job") == {"helpful-learner-2"}
    # A changed spec is another try.
    harness.change({"restartLimit": 2})
    harness.bring_job("helpful-learner-3")
    assert harness.names("Job") == {"helpful-learner-3"}
    assert harness.conditions()["Finished"] == ("False", "Running")


def test_a_checkpoint_between_failures_counts(harness: Harness) -> None:
    """Failures with progress between them never end a run."""
    start(harness, changed(RUN, restartLimit=1))
    for attempt in (1, 2, 3):
        figures = LearnerFigures(step=attempt, last_checkpoint=CheckpointStatus(step=attempt))
        harness.measured(Insight(learner=figures))
        harness.end_job(f"helpful-learner-{attempt}", "Failed")
        harness.bring_job(f"helpful-learner-{attempt + 1}")
    assert harness.conditions()["Finished"] == ("False", "Running")
    assert harness.status()["restarts"] == 3
    assert harness.status()["lastCheckpoint"]["step"] == 3


def test_a_finished_run_rests_and_goes_after_its_time(harness: Harness) -> None:
    """Succeeded, nothing runs any more; more steps continue it."""
    start(harness, changed(RUN, steps=4))
    harness.end_job("helpful-learner-1", "Complete")
    harness.settle()
    assert harness.conditions()["Finished"] == ("True", "Succeeded")
    assert harness.replicas("helpful-policy") == 0
    harness.change({"steps": 8})
    harness.bring_job("helpful-learner-2")
    assert harness.conditions()["Finished"] == ("False", "Running")
    assert harness.replicas("helpful-policy") == 1
    harness.end_job("helpful-learner-2", "Complete")
    harness.settle()
    harness.change({"ttlAfterFinished": 0})
    gone(harness)


def test_jobs_before_rl_go_one_after_the_other(harness: Harness) -> None:
    """sft, then the reward model, then RL; only then are there policies."""
    stages = {"sft": {"data": "/storage/sft.jsonl"}, "rewardModel": {"data": "/storage/pairs.jsonl"}}
    start(harness, changed(RUN, stages=stages, rewardModel=None))
    assert harness.names("Job") == {"helpful-sft"}
    assert harness.names("Deployment") == set()
    assert harness.conditions()["Progressing"] == ("True", "FineTuning")
    harness.end_job("helpful-sft", "Complete")
    harness.settle()
    assert harness.names("Job") == {"helpful-sft", "helpful-reward-model"}
    harness.end_job("helpful-reward-model", "Complete")
    harness.settle()
    assert "helpful-learner-1" in harness.names("Job")
    assert harness.names("Deployment") == ALL_SERVICES


def test_a_job_before_rl_that_fails_ends_the_run(harness: Harness) -> None:
    """Failed, with the Job's own words."""
    start(harness, changed(RUN, stages={"sft": {"data": "/storage/sft.jsonl"}}))
    harness.end_job("helpful-sft", "Failed", "no such file")
    harness.settle()
    assert harness.conditions()["Finished"] == ("True", "Failed")
    message = next(one for one in harness.status()["conditions"] if one["type"] == "Finished")["message"]
    assert message == "the job sft failed: no such file"


def test_what_keeps_a_job_before_rl_from_running_is_told(harness: Harness) -> None:
    """A pod that no node takes: degraded and stalled, and well again once it runs."""
    start(harness, changed(RUN, stages={"sft": {"data": "/storage/sft.jsonl"}}))
    assert harness.conditions()["Degraded"] == FINE
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    status = {"phase": "Pending", "conditions": [waits | {"lastTransitionTime": api_time()}]}
    pod = harness.add_pod(harness.get("Job", "helpful-sft"), "helpful-sft-x", status)
    harness.settle()
    assert harness.conditions()["Degraded"] == ("True", "Unschedulable")
    assert harness.conditions()["Progressing"] == ("False", "Stalled")
    harness.api.merge(Ref.of(pod), {"status": running()}, "kubelet", "status")
    harness.settle()
    assert harness.conditions()["Degraded"] == FINE
    assert harness.conditions()["Progressing"] == ("True", "FineTuning")


def test_a_changed_learner_is_taken_up_by_the_next_attempt(harness: Harness) -> None:
    """The Job that runs stays as it is; the next one has the new image."""
    start(harness)
    harness.change({"roles": {"learner": {"image": "learner:2"}}})
    harness.settle()
    job = harness.get("Job", "helpful-learner-1")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] != "learner:2"
    harness.end_job("helpful-learner-1", "Failed")
    harness.bring_job("helpful-learner-2")
    job = harness.get("Job", "helpful-learner-2")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "learner:2"


def test_a_learner_whose_node_is_gone_is_begun_again(harness: Harness, faulty: KubeServer) -> None:
    """A pod that cannot end is removed by force, counts as a failure, and the next attempt begins."""
    start(harness)
    job = harness.get("Job", "helpful-learner-1")
    pod = harness.add_pod(
        job, "helpful-learner-1-0-abcde", running(), finalizers=["batch.kubernetes.io/job-tracking"]
    )
    harness.api.delete(Ref.of(pod), grace_seconds=0)
    harness.reconcile()
    assert "helpful-learner-1" in harness.names("Job")
    harness.ahead = timedelta(minutes=2)
    harness.reconcile()
    assert "helpful-learner-1" not in harness.names("Job")
    harness.api.merge(Ref.of(pod), {"metadata": {"finalizers": None}}, "job-controller")
    eventually(lambda: not harness.names("Pod"))
    harness.settle()
    assert harness.names("Job") == {"helpful-learner-2"}
    assert harness.status()["restarts"] == 1


def test_a_mistake_in_the_spec_of_a_finished_run_does_not_begin_it_again(harness: Harness) -> None:
    """What is over stays over, also once the mistake is mended."""
    start(harness)
    harness.end_job("helpful-learner-1", "Complete")
    harness.settle()
    for scores in ([2.0, 1.0], [-1.0, 1.0]):
        harness.change({"algorithm": {"clipScores": scores}})
        harness.settle()
        assert harness.conditions()["Finished"] == ("True", "Succeeded")
    assert harness.names("Job") == {"helpful-learner-1"}


def test_a_failure_that_cannot_be_counted_keeps_its_job(harness: Harness, faulty: KubeServer) -> None:
    """Without the count in status the Job is all that remembers it."""
    harness.submit(RUN)
    harness.settle()
    harness.end_job("helpful-learner-1", "Failed")
    harness.ahead = timedelta(minutes=6)
    faulty.calls.fail(1, 422, verb="patch", resource="trainingruns.trimtab.dev/status")
    with pytest.raises(Refused):
        harness.reconcile()
    assert harness.names("Job") == {"helpful-learner-1"}
