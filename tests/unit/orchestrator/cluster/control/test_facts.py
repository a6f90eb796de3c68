"""From Deployments, Jobs and pods to facts; what is told, and when it is worth a write."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.cluster.conditions import RoleFacts
from orchestrator.cluster.control.attempts import Count
from orchestrator.cluster.control.course import Course
from orchestrator.cluster.control.facts import learner_facts, pod_facts, replicas_of, role_facts
from orchestrator.cluster.control.insight import Insight, LearnerFigures, RoleInsight
from orchestrator.cluster.control.pods import PodView
from orchestrator.cluster.control.status import RunPicture, only_figures, run_status
from orchestrator.cluster.kinds import TrainingRun, read_object
from orchestrator.cluster.kinds.status import CheckpointStatus
from tests.unit.orchestrator.cluster.objects import RUN

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TIME = "2026-01-02T03:04:05Z"
PICTURE = RunPicture(
    course=Course(stage="rl"),
    count=Count(attempt=2, counted=1, restarts=1, in_a_row=1, at_step=4),
    roles=(RoleFacts(name="policy", desired=2, ready=1, updated=2),),
    insight=Insight(),
    conditions=(),
    now=NOW,
)


def deployment(generation: int, seen: int) -> dict[str, Any]:
    status = {"observedGeneration": seen, "readyReplicas": 2, "updatedReplicas": 2}
    return {"metadata": {"generation": generation}, "spec": {"replicas": 3}, "status": status}


def test_a_role() -> None:
    """What the Deployment's controller has not looked at yet is not up to date."""
    insight = RoleInsight(unserved_seconds=70)
    facts = role_facts("policy", deployment(2, 2), [], insight)
    assert facts == RoleFacts(name="policy", desired=3, ready=2, updated=2, unserved_seconds=70)
    assert role_facts("policy", deployment(3, 2), [], insight).updated == 0
    assert role_facts("policy", None, [], insight) == RoleFacts(name="policy", desired=0)
    assert replicas_of({"spec": {}}) == 1


def test_who_drains_is_not_missed() -> None:
    """One that is told to go and is not ready for it; not one that serves yet, nor one that is on its way out."""
    rests = PodView(name="a", draining=NOW)
    pods = [rests, replace(rests, ready=True), replace(rests, deleting=NOW)]
    facts = role_facts("policy", deployment(1, 1), pods, RoleInsight())
    assert (facts.desired, facts.ready, facts.draining, facts.missing) == (3, 2, 1, 0)
    assert replace(facts, ready=1).missing == 1


def test_trouble_is_told_of_pods_that_stay() -> None:
    """Not of one that goes, nor of one that recovered."""
    bad = PodView(name="a", failing="boom", unschedulable="no node")
    facts = role_facts("policy", deployment(1, 1), [bad], RoleInsight())
    assert (facts.failing, facts.unschedulable) == ("boom", "no node")
    well = [replace(bad, deleting=NOW), replace(bad, ready=True, unschedulable="")]
    facts = role_facts("policy", deployment(1, 1), well, RoleInsight())
    assert (facts.failing, facts.unschedulable) == ("", "")


def test_pods_that_the_server_refuses_are_told() -> None:
    """Of a Deployment that gets no pods, in the words of whoever refused them."""
    refused = deployment(1, 1)
    refused["status"]["conditions"] = [
        {"type": "Progressing", "status": "True", "reason": "NewReplicaSetCreated"},
        {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": "pods are\nforbidden",
        },
    ]
    assert role_facts("policy", refused, [], RoleInsight()).failing == "FailedCreate: pods are forbidden"
    refused["status"]["conditions"][1]["status"] = "False"
    assert role_facts("policy", refused, [], RoleInsight()).failing == ""


def test_the_learner() -> None:
    """As many as its Job says, of those that the run wants; none where no learner is wanted."""
    job = {"status": {"ready": 2}}
    trains = RoleFacts(name="learner", desired=2, ready=2, updated=2, least=2)
    assert learner_facts(2, job, [], wanted=True, now=NOW) == trains
    assert learner_facts(2, None, [], wanted=True, now=NOW) == RoleFacts(name="learner", desired=2, least=2)
    assert learner_facts(2, job, [], wanted=False, now=NOW) == RoleFacts(name="learner", desired=0, least=2)


def test_the_pod_of_a_job_and_of_the_queue() -> None:
    """What keeps it from running is told; what ended before, or has recovered, is not."""
    bad = PodView(name="a", failing="sft: ImagePullBackOff", unschedulable="no node")
    facts = pod_facts("sft", {}, [bad], NOW)
    assert facts == RoleFacts(name="sft", desired=1, failing="sft: ImagePullBackOff", unschedulable="no node")
    runs = [replace(bad, ended=True), PodView(name="b", ready=True)]
    assert pod_facts("sft", {}, runs, NOW) == RoleFacts(name="sft", desired=1, ready=1)


def test_no_pod_after_a_minute_is_trouble() -> None:
    """Of a Job that neither begins nor ends; not of a young one, nor of one that is over or goes."""
    metadata = {"name": "helpful-sft", "creationTimestamp": "2026-01-02T03:03:00Z"}
    job = {"kind": "Job", "metadata": metadata}
    told = "Job helpful-sft gets no pod: kubectl describe says why (a quota, Pod Security)"
    assert pod_facts("sft", job, [], NOW).failing == told
    assert learner_facts(1, job, [], wanted=True, now=NOW).failing == told
    young = metadata | {"creationTimestamp": "2026-01-02T03:03:30Z"}
    goes = metadata | {"deletionTimestamp": TIME}
    over = {"conditions": [{"type": "Complete", "status": "True"}]}
    for other in ({"metadata": young}, {"metadata": goes}, {"status": over}):
        assert pod_facts("sft", job | other, [], NOW).failing == ""
    assert pod_facts("sft", job, [PodView(name="a", ended=True)], NOW).failing == ""


def run(status: dict[str, Any] | None = None) -> TrainingRun:
    return read_object(TrainingRun, RUN | {"status": status or {}})


def test_a_status() -> None:
    """Counts of attempts, roles, times; what was not measured is not made up."""
    status = run_status(run(), PICTURE)
    assert (status["attempt"], status["restarts"], status["failures"]) == (2, 1, 1)
    assert (status["failedAttempt"], status["failedStep"]) == (1, 4)
    assert (status["stage"], status["startTime"], status["observedGeneration"]) == ("rl", TIME, 1)
    assert status["roles"][0] | {"reason": ""} == {
        "name": "policy",
        "desired": 2,
        "ready": 1,
        "updated": 2,
        "draining": 0,
        "reason": "",
    }
    assert not {"completionTime", "reward", "kl", "lastCheckpoint"} & set(status)


def test_what_is_not_measured_now_stays() -> None:
    """Between two attempts nobody answers; the step is still what it was."""
    figures = LearnerFigures(step=7, version="1.7", reward=0.5)
    measured = run_status(run(), replace(PICTURE, insight=Insight(learner=figures)))
    later = run_status(run(measured), PICTURE)
    assert (later["step"], later["version"], later["reward"]) == (7, "1.7", 0.5)


def test_a_checkpoint_is_dated_by_when_it_was_first_seen() -> None:
    """It keeps that time for as long as it is the last, also when the next attempt begins at it."""

    def seen(step: int, epoch: int, before: dict[str, Any], now: datetime) -> dict[str, Any]:
        checkpoint = CheckpointStatus(step=step, epoch=epoch, path=f"/storage/step-{step}")
        insight = Insight(learner=LearnerFigures(last_checkpoint=checkpoint))
        return run_status(run(before), replace(PICTURE, insight=insight, now=now))

    first = seen(10, 1, {}, NOW)
    assert first["lastCheckpoint"] == {"step": 10, "epoch": 1, "path": "/storage/step-10", "time": TIME}
    later = datetime(2026, 5, 5, tzinfo=UTC)
    same = seen(10, 2, first, later)
    assert same["lastCheckpoint"] == first["lastCheckpoint"] | {"epoch": 2}
    assert run_status(run(same), replace(PICTURE, now=later))["lastCheckpoint"]["time"] == TIME
    assert seen(20, 2, same, later)["lastCheckpoint"]["time"] == "2026-05-05T00:00:00Z"


def test_the_same_picture_gives_the_same_status() -> None:
    """However much later: its times are those of the first."""
    first = run_status(run(), PICTURE)
    again = run_status(run(first), replace(PICTURE, now=datetime(2026, 5, 5, tzinfo=UTC)))
    assert again == first


def test_an_end_has_its_time_and_steps() -> None:
    """They stay as they were at the end; going on again takes the time away."""
    over = replace(PICTURE, course=Course(stage="rl", finished="Succeeded", message="done"))
    status = run_status(run(), over)
    assert (status["stage"], status["completionTime"], status["steps"]) == ("done", TIME, 32)
    assert run_status(run(status), replace(over, now=datetime(2026, 5, 5, tzinfo=UTC))) == status
    assert "completionTime" not in run_status(run(status), PICTURE)


def test_figures_alone_are_less_urgent() -> None:
    """Step, reward, backlog; not a condition, an attempt or a replica."""
    old = run_status(run(), PICTURE)
    assert only_figures(old | {"step": 9, "reward": 1.0}, old)
    assert not only_figures(old | {"attempt": 3}, old)
    roles = [{**old["roles"][0], "backlogGroups": 5}]
    assert only_figures(old | {"roles": roles}, old)
    assert not only_figures(old | {"roles": [{**old["roles"][0], "ready": 0}]}, old)
