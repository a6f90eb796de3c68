"""Pods and Jobs as the operator looks at them: from objects of the API to a few facts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.cluster.names import DRAIN, SERVICE

USER_ERROR = 2
"""Exit status of a service whose configuration is wrong (services/common/entry.py)."""
_WAITS_BADLY = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod as seen."""

    name: str
    service: str = ""
    address: str = ""
    ready: bool = False
    ended: bool = False
    """All its containers are over."""
    deleting: datetime | None = None
    """When its grace period ends, if it is being deleted."""
    draining: datetime | None = None
    """Since when it is told to."""
    reclaimed: bool = False
    """Its node is about to be taken away."""
    unschedulable: str = ""
    failing: str = ""
    exit_code: int | None = None
    created: datetime | None = None
    ready_since: datetime | None = None

    def overdue_seconds(self, now: datetime) -> float:
        """Since it should have been gone."""
        return -1.0 if self.deleting is None else (now - self.deleting).total_seconds()


def pod_view(pod: Mapping[str, Any]) -> PodView:
    """Of a Pod."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    ended = status.get("phase") in ("Succeeded", "Failed")
    scheduled, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    annotations = metadata.get("annotations") or {}
    return PodView(
        name=metadata["name"],
        service=(metadata.get("labels") or {}).get(SERVICE, ""),
        address=status.get("podIP", ""),
        ready=ready.get("status") == "True" and not ended,
        ended=ended,
        deleting=moment(metadata.get("deletionTimestamp")),
        draining=_marked(annotations.get(DRAIN), metadata),
        reclaimed=conditions.get("DisruptionTarget", {}).get("status") == "True",
        unschedulable=_words(scheduled) if scheduled.get("reason") == "Unschedulable" else "",
        failing=_failing(containers, status),
        exit_code=_exit_code(containers),
        created=moment(metadata.get("creationTimestamp")),
        ready_since=moment(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
    )


def _marked(mark: object, metadata: Mapping[str, Any]) -> datetime | None:
    """Since when. The pod heeds any mark that is not blank; one that is no time counts from its creation."""
    if not isinstance(mark, str) or not mark.strip():
        return None
    return moment(mark) or moment(metadata.get("creationTimestamp")) or datetime.min.replace(tzinfo=UTC)


def moment(text: object) -> datetime | None:
    """A time of the API. None where there is none, or it cannot be read."""
    if not isinstance(text, str) or not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None


def _terminated(container: Mapping[str, Any]) -> Mapping[str, Any]:
    state = container.get("state") or {}
    last = container.get("lastState") or {}
    found: Mapping[str, Any] = state.get("terminated") or last.get("terminated") or {}
    return found


def _exit_code(containers: Sequence[Mapping[str, Any]]) -> int | None:
    codes = [_terminated(container).get("exitCode") for container in containers]
    return next((code for code in codes if code), None)


def _failing(containers: Sequence[Mapping[str, Any]], status: Mapping[str, Any]) -> str:
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _WAITS_BADLY:
            told = _words(waiting) or waiting["reason"]
            end = _terminated(container)
            code = f"; it ended with {end['exitCode']}" if end.get("exitCode") else ""
            return f"{container.get('name', 'container')}: {told}{code}"
    for container in containers:
        end = (container.get("state") or {}).get("terminated") or {}
        if end.get("exitCode"):
            why = _words(end) or "Error"
            return f"{container.get('name', 'container')} ended with {end['exitCode']}: {why}"
    if status.get("phase") == "Failed":
        return _words(status) or "the pod failed"
    return ""


def _words(part: Mapping[str, Any]) -> str:
    """Reason and message on one line, not longer than a condition can bear."""
    told = ": ".join(str(part[key]) for key in ("reason", "message") if part.get(key))
    return " ".join(told.split())[:500]
