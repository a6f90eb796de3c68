"""What controllers write."""

from __future__ import annotations

from typing import Any

from tests.fakes.kube import workloads


def deployment(wanted: int, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "d", "generation": 4}, "spec": {"replicas": wanted}, "status": status}


def test_a_deployment_is_available_with_one_missing_of_many_but_not_of_one() -> None:
    """25 % of one is none."""
    held = {
        (wanted, ready): workloads.deployment_status(deployment(wanted), ready, "t")["conditions"][0][
            "status"
        ]
        for wanted, ready in ((4, 3), (4, 2), (1, 0), (1, 1), (0, 0))
    }
    assert held == {(4, 3): "True", (4, 2): "False", (1, 0): "False", (1, 1): "True", (0, 0): "True"}


def test_counts_of_zero_are_left_out() -> None:
    """As the real one does; never more are ready than there are."""
    status = workloads.deployment_status(deployment(2, readyReplicas=1), 9, "t")
    assert {name: status[name] for name in ("replicas", "readyReplicas", "observedGeneration")} == {
        "replicas": 2, "readyReplicas": 2, "observedGeneration": 4,
    }  # fmt: skip
    assert "unavailableReplicas" not in status


def test_a_condition_that_stays_keeps_its_time() -> None:
    """lastTransitionTime is of the last change."""
    first = workloads.deployment_status(deployment(1), 1, "1")
    again = workloads.deployment_status(deployment(1, **first), 1, "2")
    changed = workloads.deployment_status(deployment(1, **first), 0, "2")
    assert again["conditions"][0]["lastTransitionTime"] == "1"
    assert changed["conditions"][0]["lastTransitionTime"] == "2"


def test_a_job_ends_once() -> None:
    """Complete or Failed, with the condition that leads up to it."""
    job: dict[str, Any] = {"metadata": {"name": "j"}, "spec": {"completions": 2, "completionMode": "Indexed"}}
    done = workloads.job_succeeded(job, "t")
    assert (done["succeeded"], done["completedIndexes"]) == (2, "0-1")
    assert workloads.is_finished(job | {"status": done})
    failed = workloads.job_failed(job, "t", "BackoffLimitExceeded", "m")
    assert [each["type"] for each in failed["conditions"]] == ["FailureTarget", "Failed"]
    assert not workloads.is_finished(job | {"status": workloads.job_running(job, 1, "t")})
