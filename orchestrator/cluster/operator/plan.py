"""What a TrainingRun is to be, decided from one look at the cache. Pure: it asks and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from orchestrator.cluster.conditions import RoleFacts
from orchestrator.cluster.control.attempts import Count, JobState, Learner
from orchestrator.cluster.control.course import Course
from orchestrator.cluster.control.facts import pod_facts
from orchestrator.cluster.control.resources import Object
from orchestrator.cluster.control.view import LEARNER, View
from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render.jobs import SERVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be, decided from one look."""

    run: TrainingRun
    names: RunNames
    view: View
    course: Course
    learner: Learner
    is_admitted: bool
    kueue_unseen: str
    """Why nobody knows whether it is admitted; empty: it is known, or Kueue is not asked."""
    waits_for_checkpoint: bool

    @property
    def wanted(self) -> bool:
        """Whether a learner is to run now."""
        return wants_learner(self.run, self.course, is_admitted=self.is_admitted)

    @property
    def held(self) -> bool:
        """Whether it is left as it is: who cannot see what Kueue says must neither start a run nor take it down."""
        return bool(self.kueue_unseen) and not self.run.spec.suspend and not self.course.finished

    @property
    def rest(self) -> bool:
        """Whether nobody works now."""
        return not self.wanted and not self.waits_for_checkpoint


def wants_learner(run: TrainingRun, course: Course, *, is_admitted: bool) -> bool:
    """Whether a learner is to run."""
    return course.stage == "rl" and not course.finished and not run.spec.suspend and is_admitted


def _waited_for(plan: Plan) -> dict[str, Object]:
    """By service, what is no role and whose one pod is to be there: the queue's server, the job before RL."""
    names, stage = plan.names, plan.course.stage
    found = {"redis": plan.view.object_of("StatefulSet", names.redis)}
    if stage in SERVICES:
        found[SERVICES[stage]] = plan.view.jobs.get(names.job(SERVICES[stage]))
    return {service: item for service, item in found.items() if item is not None}


def pods_beside(plan: Plan, now: datetime) -> tuple[RoleFacts, ...]:
    """What there is to say of pods that are of no role."""
    return tuple(
        pod_facts(service, item, plan.view.pods_of(service), now)
        for service, item in _waited_for(plan).items()
    )


def is_podless(plan: Plan) -> bool:
    """Whether a pod that is to be there is not: no event tells that it goes on so."""
    services = [*_waited_for(plan), *([LEARNER] if plan.wanted else [])]
    return not plan.course.finished and not all(plan.view.pods_of(service) for service in services)


def counted(plan: Plan) -> Count:
    """What status is to say: an attempt whose Job could not be made is none."""
    count, attempt = plan.learner.count, plan.learner.attempt
    if attempt is None or plan.names.learner_job(attempt) in plan.view.jobs:
        return count
    return replace(count, attempt=min(count.attempt, max(plan.run.status.attempt, count.counted)))


def stage_jobs_to_go(plan: Plan) -> list[str]:
    """Jobs before RL that are not to run now, or are to be run again."""
    gone = []
    for stage, job in (plan.view.before_rl or {}).items():
        stopped = plan.run.spec.suspend or stage != plan.course.stage or not plan.is_admitted
        if job.state is JobState.RUNNING and stopped:
            gone.append(job.name)
        if job.state is JobState.FAILED and plan.course.anew:
            gone.append(job.name)
    return gone
