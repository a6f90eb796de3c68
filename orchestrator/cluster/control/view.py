"""What the cache holds of one owner, sorted: Deployments by service, Jobs, pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.control.attempts import JobView
from orchestrator.cluster.control.jobs import job_view
from orchestrator.cluster.control.pods import PodView, pod_view
from orchestrator.cluster.control.resources import Object
from orchestrator.cluster.names import SERVICE, RunNames
from orchestrator.cluster.render.jobs import SERVICES

LEARNER = "learner"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything that belongs to one run or reward model, as the cache has it."""

    owned: Sequence[Object]
    deployments: Mapping[str, Object]
    """By name."""
    pods: Mapping[str, Sequence[PodView]]
    """By service."""
    jobs: Mapping[str, Object]
    """By name."""
    learner: Sequence[JobView] = ()
    before_rl: Mapping[str, JobView] | None = None
    """By stage."""
    workload: Object | None = None

    def pods_of(self, service: str) -> Sequence[PodView]:
        """Of one service."""
        return self.pods.get(service, ())

    def object_of(self, kind: str, name: str) -> Object | None:
        """One of what is owned."""
        found = (item for item in self.owned if item["kind"] == kind and item["metadata"]["name"] == name)
        return next(found, None)


def view_of(owned: Sequence[Object], names: RunNames | None = None) -> View:
    """`names`: of a run; None: a reward model's, which has no Jobs."""
    pods: dict[str, list[PodView]] = {}
    for item in owned:
        if item["kind"] == "Pod":
            pod = pod_view(item)
            pods.setdefault(pod.service, []).append(pod)
    jobs = {item["metadata"]["name"]: item for item in owned if item["kind"] == "Job"}
    stages = {stage: jobs[name] for stage, name in _stage_jobs(names).items() if name in jobs}
    learners = [job for job in jobs.values() if _service(job) == LEARNER]
    return View(
        owned=owned,
        deployments={item["metadata"]["name"]: item for item in owned if item["kind"] == "Deployment"},
        pods=pods,
        jobs=jobs,
        learner=[job_view(job, _pods_of(job, pods.get(LEARNER, ()))) for job in learners],
        before_rl={stage: job_view(job, pods.get(SERVICES[stage], ())) for stage, job in stages.items()},
        workload=next((item for item in owned if item["kind"] == "Workload"), None),
    )


def admitted(workload: Mapping[str, Any] | None) -> bool:
    """Whether Kueue lets the run have its pods now."""
    conditions = ((workload or {}).get("status") or {}).get("conditions") or ()
    states = {condition["type"]: condition.get("status") == "True" for condition in conditions}
    return states.get("Admitted", False) and not states.get("Evicted", False)


def assigned_flavors(workload: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """The flavors that Kueue chose for each set of pods; a set is called as its service."""
    admission = ((workload or {}).get("status") or {}).get("admission") or {}
    return {
        assignment["name"]: tuple(dict.fromkeys((assignment.get("flavors") or {}).values()))
        for assignment in admission.get("podSetAssignments") or ()
    }


def _stage_jobs(names: RunNames | None) -> Mapping[str, str]:
    return {} if names is None else {stage: names.job(service) for stage, service in SERVICES.items()}


def _service(job: Mapping[str, Any]) -> str:
    return str((job["metadata"].get("labels") or {}).get(SERVICE, ""))


def _pods_of(job: Mapping[str, Any], pods: Sequence[PodView]) -> list[PodView]:
    """Pods of an Indexed Job are named after it and their index."""
    return [pod for pod in pods if pod.name.startswith(f"{job['metadata']['name']}-")]
