"""A Job's conditions and pods as one view. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cluster.control.attempts import JobState, JobView
from orchestrator.cluster.control.pods import USER_ERROR, PodView, moment
from orchestrator.cluster.names import ATTEMPT, STEPS

_BY_RULE = "PodFailurePolicy"
"""Reason of a Job that ended by the one rule that ours have (render/learner.py): a pod was taken away."""


def job_view(job: Mapping[str, Any], pods: Sequence[PodView]) -> JobView:
    """Of a Job and its own pods."""
    metadata = job["metadata"]
    ends = {
        condition["type"]: condition
        for condition in (job.get("status") or {}).get("conditions") or ()
        if condition.get("status") == "True" and condition["type"] in ("Complete", "Failed")
    }
    end = ends.get("Failed") or ends.get("Complete") or {}
    broken, by_rule = [pod for pod in pods if pod.failing], end.get("reason") == _BY_RULE
    told = broken[0].failing if broken and not by_rule else " ".join(str(end.get("message", "")).split())
    return JobView(
        name=metadata["name"],
        state=_state(metadata, ends),
        attempt=_number((metadata.get("labels") or {}).get(ATTEMPT, "")),
        message=told,
        users_mistake=any(pod.exit_code == USER_ERROR for pod in broken),
        disrupted=by_rule or any(pod.reclaimed for pod in pods),
        bereft=any(pod.reclaimed or pod.deleting is not None for pod in pods),
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
