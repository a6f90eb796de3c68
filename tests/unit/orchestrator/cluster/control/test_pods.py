"""Pods and Jobs as the operator looks at them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.cluster.control.attempts import JobState
from orchestrator.cluster.control.jobs import job_view
from orchestrator.cluster.control.pods import PodView, moment, pod_view

TIME = "2026-01-02T03:04:05Z"
THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def pod(metadata: dict[str, Any] | None = None, **status: Any) -> PodView:
    named = {"name": "p", "labels": {"trimtab.dev/service": "policy"}, **(metadata or {})}
    return pod_view({"metadata": named, "status": status})


def condition(kind: str, status: str = "True", **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": TIME, **more}


def container(**state: Any) -> dict[str, Any]:
    return {"name": "policy", "state": state}


def test_a_pod_that_serves() -> None:
    """Its service, address, and since when it is ready."""
    seen = pod(phase="Running", podIP="10.0.0.1", conditions=[condition("Ready")])
    assert (seen.service, seen.address, seen.ready, seen.ready_since) == ("policy", "10.0.0.1", True, THEN)


def test_a_pod_without_a_node_says_why() -> None:
    """The scheduler's words, on one line."""
    told = condition("PodScheduled", "False", reason="Unschedulable", message="0/3 nodes are\navailable")
    assert pod(phase="Pending", conditions=[told]).unschedulable == "Unschedulable: 0/3 nodes are available"


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (
            container(waiting={"reason": "ImagePullBackOff", "message": "no such image"}),
            "policy: ImagePullBackOff: no such image",
        ),
        (
            container(waiting={"reason": "CrashLoopBackOff"})
            | {"lastState": {"terminated": {"exitCode": 2}}},
            "policy: CrashLoopBackOff; it ended with 2",
        ),
        (
            container(terminated={"exitCode": 137, "reason": "OOMKilled"}),
            "policy ended with 137: OOMKilled",
        ),
        (container(waiting={"reason": "ContainerCreating"}), ""),
        (container(terminated={"exitCode": 0, "reason": "Completed"}), ""),
        (container(running={}), ""),
    ],
)
def test_what_a_pod_fails_with(state: dict[str, Any], told: str) -> None:
    """What is on its way, or ended well, is no failure."""
    assert pod(phase="Running", containerStatuses=[state]).failing == told


def test_a_pod_that_goes_is_overdue_after_its_grace_period() -> None:
    """deletionTimestamp is the end of it."""
    seen = pod({"deletionTimestamp": TIME})
    assert seen.overdue_seconds(THEN + timedelta(seconds=7)) == 7
    assert pod().overdue_seconds(THEN) == -1


def test_marks_of_the_scaler_and_of_the_cluster() -> None:
    """Drained since when; a node that is about to be taken away."""
    seen = pod({"annotations": {"trimtab.dev/drain": TIME}}, conditions=[condition("DisruptionTarget")])
    assert (seen.draining, seen.reclaimed) == (THEN, True)
    assert not pod(conditions=[condition("DisruptionTarget", "False")]).reclaimed


@pytest.mark.parametrize(("mark", "since"), [("by hand", THEN), (" ", None), ("", None)])
def test_a_mark_that_is_no_time(mark: str, since: datetime | None) -> None:
    """The pod heeds whatever is not blank, so the operator does: since the pod was made, for want of better."""
    assert pod({"annotations": {"trimtab.dev/drain": mark}, "creationTimestamp": TIME}).draining == since


def test_times() -> None:
    """With or without fractions; what is no time is none."""
    assert moment("2026-01-02T03:04:05.000000Z") == THEN
    assert moment(None) is moment("") is moment("yesterday") is None


def job(**status: Any) -> dict[str, Any]:
    labels, annotations = {"trimtab.dev/attempt": "3"}, {"trimtab.dev/steps": "64"}
    return {"metadata": {"name": "j", "labels": labels, "annotations": annotations}, "status": status}


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], JobState.RUNNING),
        ([condition("FailureTarget")], JobState.RUNNING),
        ([condition("Complete", "False")], JobState.RUNNING),
        ([condition("SuccessCriteriaMet"), condition("Complete")], JobState.COMPLETE),
        ([condition("FailureTarget"), condition("Failed", message="limit")], JobState.FAILED),
    ],
)
def test_states_of_a_job(conditions: list[dict[str, str]], state: JobState) -> None:
    """It is over when its pods are, not when that is decided."""
    seen = job_view(job(conditions=conditions), [])
    assert (seen.state, seen.attempt, seen.steps) == (state, 3, 64)


def test_a_job_that_is_being_deleted() -> None:
    """Whatever else it is."""
    going = job(conditions=[condition("Failed")])
    going["metadata"]["deletionTimestamp"] = TIME
    assert job_view(going, []).state is JobState.GOING


def test_a_failed_job_tells_what_its_pods_ended_with() -> None:
    """And whether that was a mistake in what it was given: exit status 2."""
    broken = PodView(name="j-0-x", failing="learner ended with 2: Error", exit_code=2)
    seen = job_view(job(conditions=[condition("Failed", message="limit")]), [broken])
    assert (seen.message, seen.users_mistake) == ("learner ended with 2: Error", True)
    assert job_view(job(conditions=[condition("Failed", message="limit")]), []).message == "limit"


def test_a_job_whose_pod_the_cluster_took_away() -> None:
    """The pod says it, and after its end, when there is no pod any more, the Job: our one rule ended it."""
    ended = condition("Failed", reason="PodFailurePolicy", message="Pod p has condition DisruptionTarget")
    drained = PodView(name="j-0-x", failing="learner ended with 143: Error", exit_code=143, reclaimed=True)
    for pods in ([], [drained]):
        seen = job_view(job(conditions=[ended]), pods)
        assert (seen.disrupted, seen.users_mistake) == (True, False)
        assert seen.message == "Pod p has condition DisruptionTarget"
    crashed = replace(drained, reclaimed=False, deleting=THEN)
    by_hand = job_view(job(conditions=[condition("Failed", reason="BackoffLimitExceeded")]), [crashed])
    assert (by_hand.disrupted, by_hand.bereft) == (False, True)
