"""A Job's conditions and pods as one view. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cluster.control.attempts import JobState, JobView
from orchestrator.cluster.control.pods import USER_ERROR, PodView, moment
from orchestrator.cluster.names import ATTEMPT, STEPS


def job_view(job: Mapping[str, Any], pods: Sequence[PodView]) -> JobView:
    """Of a Job and its own pods."""
    metadata = job["metadata"]
    ends = {
        condition["type"]: condition
        for condition in (job.get("status") or {}).get("conditions") or ()
        if condition.get("status") == "True" and condition["type"] in ("Complete", "Failed")
    }
    end = ends.get("Failed") or ends.get("Complete") or {}
    broken = [pod for pod in pods if pod.failing]
    told = broken[0].failing if broken else " ".join(str(end.get("message", "")).split())
    return JobView(
        name=metadata["name"],
        state=_state(metadata, ends),
        attempt=_number((metadata.get("labels") or {}).get(ATTEMPT, "")),
        message=told,
        users_mistake=any(pod.exit_code == USER_ERROR for pod in broken),
        steps=_number((metadata.get("annotations") or {}).get(STEPS, "")),
        ended=moment(end.get("lastTransitionTime")),
    )


def _state(metadata: Mapping[str, Any], ends: Mapping[str, Any]) -> JobState:
    if metadata.get("deletionTimestamp"):
        return JobState.GOING
    if "Failed" in ends:
        return JobState.FAILED
    return JobState.COMPLETE if "Complete" in ends else JobState.RUNNING


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
