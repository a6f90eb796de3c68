"""Whether a run's Workload is to be there, and at which priority. Pure.

    run                      its pods    Workload
    ──────────────────────   ─────────   ─────────────────────────────────────────────
    wants to work            any         there
    evicted                  going       there: they still use what it reserves
    evicted                  gone        removed; the next look makes another, which waits anew
    suspended or finished    going       there, if it was
    suspended or finished    gone        removed

Kueue takes quota back only through the controllers of its own kinds of jobs, and a run is none of them: what a run's
Workload reserves ends with the Workload. Rejected: writing its conditions, which takes a right to its status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cluster.control.attempts import JobState
from orchestrator.cluster.control.facts import replicas_of
from orchestrator.cluster.control.view import View

QUEUE = "redis"
"""The service of a run's own queue server."""
_LIVE = (JobState.RUNNING, JobState.GOING)


def keeps_workload(view: View, *, over: bool) -> bool:
    """The table above. `over`: the run is suspended or finished."""
    if over:
        return view.workload is not None and not is_gone(view)
    return not (evicted(view.workload) and holds_quota(view.workload) and is_gone(view))


def is_gone(view: View) -> bool:
    """Whether the run has no pod on a node, and none is on its way. Its queue's server is not in the Workload."""
    jobs = (*view.learner, *(view.before_rl or {}).values())
    pods = (pod for service, those in view.pods.items() if service != QUEUE for pod in those)
    return not (
        any(not pod.ended for pod in pods)
        or any(job.state in _LIVE for job in jobs)
        or any(_replicas(deployment) for deployment in view.deployments.values())
    )


def holds_quota(workload: Mapping[str, Any] | None) -> bool:
    """Whether Kueue has reserved its quota: from then on nobody may change its spec, but for `active`."""
    return _is(workload, "QuotaReserved") or _is(workload, "Admitted")


def evicted(workload: Mapping[str, Any] | None) -> bool:
    """Whether Kueue wants the quota back."""
    return _is(workload, "Evicted")


def priority_kept(workload: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> int | None:
    """The priority that it was made with, which a class keeps giving it; None: made with another class, or not at all.

    `wanted`: the manifest, without its priority.
    """
    spec: Mapping[str, Any] = (workload or {}).get("spec") or {}
    named = ("priorityClassName", "priorityClassRef")
    if any(spec.get(field) != wanted["spec"].get(field) for field in named):
        return None
    return spec.get("priority")


def _replicas(deployment: Mapping[str, Any]) -> int:
    """Wanted, or there still."""
    there: int = (deployment.get("status") or {}).get("replicas", 0)
    return max(replicas_of(deployment), there)


def _is(workload: Mapping[str, Any] | None, kind: str) -> bool:
    conditions = ((workload or {}).get("status") or {}).get("conditions") or ()
    return any(one["type"] == kind and one.get("status") == "True" for one in conditions)
