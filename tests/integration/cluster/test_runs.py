"""A TrainingRun from its creation to its end, one reconcile after the other."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.cluster.client.errors import Refused
from orchestrator.cluster.control.insight import Insight, LearnerFigures
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.kinds.status import CheckpointStatus
from services.common.errors import Forbidden, NotFound
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, api_time, eventually, running
from tests.unit.orchestrator.cluster.objects import MODEL, RUN, changed

ALL_SERVICES = {f"helpful-{name}" for name in ("policy", "reference", "reward")}
FINE = ("False", "AsExpected")
UNPLACED = ("True", "Unschedulable")


def start(harness: Harness, run: dict[str, Any] = RUN) -> None:
    harness.submit(run)
    harness.settle()


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
    ref = Ref("TrainingRun", harness.namespace, "helpful")
    for attempt in (1, 2, 3):
        figures = LearnerFigures(step=attempt, last_checkpoint=CheckpointStatus(step=attempt))
        harness.tools.insights.put(ref, Insight(learner=figures))
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


def gone(harness: Harness) -> None:
    """Reconcile until the run is gone, then hold that nothing is left."""

    def ended() -> bool:
        harness.reconcile()
        return harness.find("TrainingRun", "helpful") is None

    eventually(ended)
    eventually(lambda: not harness.versions())
    with pytest.raises(NotFound):
        harness.get("Secret", "helpful-redis")


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


def test_figures_that_are_no_numbers_are_left_out(harness: Harness) -> None:
    """No server takes them; what else there is to tell is told."""
    harness.submit(RUN)
    harness.settle()
    ref = Ref("TrainingRun", harness.namespace, "helpful")
    figures = LearnerFigures(step=3, steps=32, kl=math.inf, reward=math.nan)
    harness.tools.insights.put(ref, Insight(learner=figures))
    harness.clock.advance(11)
    harness.settle()
    assert harness.status()["step"] == 3
    assert not {"kl", "reward"} & set(harness.status())


def test_what_belongs_to_somebody_else_is_left_as_it_is(harness: Harness) -> None:
    """A ServiceAccount of the user's under the run's name: refused in words, and still there after the run."""
    metadata = {"name": "helpful", "namespace": harness.namespace, "annotations": {"role": "theirs"}}
    theirs = harness.api.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, "kubectl"
    )
    harness.submit(RUN)
    for _ in range(2):
        with pytest.raises(Refused, match="ServiceAccount helpful exists and belongs to somebody else"):
            harness.reconcile()
    assert harness.conditions()["Degraded"] == ("True", "Refused")
    assert harness.names("Job") == set()
    found = harness.get("ServiceAccount", "helpful")
    assert found["metadata"].get("labels") == theirs["metadata"].get("labels")
    assert "ownerReferences" not in found["metadata"]
    harness.api.delete(Ref("TrainingRun", harness.namespace, "helpful"))
    harness.bring(lambda: harness.find("TrainingRun", "helpful") is None)
    assert harness.find("ServiceAccount", "helpful")


def test_a_job_of_somebody_else_is_not_the_learner(harness: Harness) -> None:
    """Nobody waits for ever for a Job that is not ours."""
    template = {
        "metadata": {},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]},
    }
    metadata = {"name": "helpful-learner-1", "namespace": harness.namespace}
    spec = {"template": template, "suspend": True}
    harness.api.create(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}, "kubectl"
    )
    harness.submit(RUN)
    with pytest.raises(Refused, match="Job helpful-learner-1 exists"):
        harness.reconcile()
    assert harness.conditions()["Degraded"] == ("True", "Refused")


def test_a_run_and_a_reward_model_of_one_name_do_not_fight(harness: Harness) -> None:
    """Whoever comes second is told whose ServiceAccount it is, and the first has nothing to write."""
    harness.submit({**MODEL, "metadata": {"name": "helpful"}})
    harness.settle("helpful", "RewardModel")
    harness.submit(RUN)
    for _ in range(2):
        with pytest.raises(Refused, match="belongs to RewardModel helpful"):
            harness.reconcile()
    assert harness.settle("helpful", "RewardModel") == []
    assert harness.conditions()["Degraded"] == ("True", "Refused")


def test_what_lost_its_owner_and_kept_its_labels_is_taken_back(harness: Harness) -> None:
    """As after a deletion with --cascade=orphan, and the same run submitted again."""
    start(harness)
    ref = Ref("Deployment", harness.namespace, "helpful-policy")
    harness.api.merge(ref, {"metadata": {"ownerReferences": None}}, "kubectl")
    harness.settle()
    assert harness.get(*ref[::2])["metadata"]["ownerReferences"][0]["kind"] == "TrainingRun"
