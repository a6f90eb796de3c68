"""Reconciles a TrainingRun: one look at the cache, then only what differs is written.

    guard ──▶ read spec ──▶ course, learner (control/) ──▶ Secret ──▶ apply, prune ──▶ numbers ──▶ Job of this
    (finaliser)   │              │                                                                 stage or attempt
                  │              └ Kueue unseen: likewise, until it is suspended or over                   │
                  └ invalid: status says so, nothing else is touched                                       │
                                                    Jobs that are over go ◀── status, Events ◀─────────────┘

The order matters twice. A failure stands in status before its Job is removed, so it is counted once. While a learner
that is to go writes its checkpoint, its policies go on: without them it would never reach the end of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from orchestrator.cluster.client.errors import Refused, first_refused
from orchestrator.cluster.conditions import RoleFacts, RunFacts, run_conditions
from orchestrator.cluster.control.attempts import Count, JobState, Terms, next_learner
from orchestrator.cluster.control.contest import Contests
from orchestrator.cluster.control.course import DONE, Course, check_supported, course_of, stages_in_order
from orchestrator.cluster.control.facts import PODLESS_SECONDS, learner_facts, role_facts
from orchestrator.cluster.control.pods import moment
from orchestrator.cluster.control.queueing import holds_quota, keeps_workload, priority_kept
from orchestrator.cluster.control.replicas import RESUME, Number, number_for, remembered
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.control.status import RunPicture, as_written, run_status
from orchestrator.cluster.control.view import LEARNER, View, admitted, view_of
from orchestrator.cluster.kinds import TrainingRun, TrainingRunStatus, read_object
from orchestrator.cluster.names import MANAGER, RunNames, service_of
from orchestrator.cluster.operator.checkpoints import Checkpoints, Leaving
from orchestrator.cluster.operator.flavors import Flavors
from orchestrator.cluster.operator.leftovers import Leftovers
from orchestrator.cluster.operator.plan import (
    Plan,
    counted,
    is_podless,
    pods_beside,
    stage_jobs_to_go,
    wants_learner,
)
from orchestrator.cluster.operator.secrets import RunSecrets
from orchestrator.cluster.operator.shared import Tools
from orchestrator.cluster.operator.status_writer import StatusWriter
from orchestrator.cluster.render import Manifest, RunState, render_run
from orchestrator.cluster.render.options import PORTS
from orchestrator.cluster.render.services import stage_role, stages_of
from services.common.errors import InvalidInput

CHECKPOINT_LOOK_SECONDS = 2.0
HELD_LOOK_SECONDS = 10.0


class RunReconciler:
    """Brings runs to where their specs say."""

    def __init__(
        self, tools: Tools, secrets: RunSecrets, checkpoints: Checkpoints, leftovers: Leftovers
    ) -> None:
        self._tools, self._secrets, self._checkpoints = tools, secrets, checkpoints
        self._leftovers = leftovers
        self._contests: dict[Ref, Contests] = {}
        self._flavors = Flavors(tools.api, tools.clock)
        self._status = StatusWriter(tools.api, tools.store, seconds=tools.status_seconds, clock=tools.clock)

    def handle(self, ref: Ref) -> float | None:
        """One reconcile; seconds after which to look again."""
        item = self._tools.store.get(ref)
        if item is None:
            self._forget(ref)
            return None
        if item["metadata"].get("deletionTimestamp"):
            self._checkpoints.keep(ref)
            wait = self._tools.finaliser.end(item, self._tools.now(), partial(self._last, item))
            if wait is None:
                # Another may be there under its name before anybody sees that this one is not.
                self._forget(ref)
            return wait
        item = self._tools.finaliser.guard(item)
        try:
            run = read_object(TrainingRun, item)
            run.spec.run_spec(ref.name)
            check_supported(run)
        except (InvalidInput, ValueError) as error:
            self._tell_invalid(item, str(error))
            return None
        try:
            return self._bring(item, run)
        except Refused:
            raise
        except InvalidInput as error:
            self._tell_invalid(item, str(error))
            return None

    def _last(self, item: Object) -> bool:
        """Of a run that is deleted, once its pods are gone: its keys, its Secret."""
        if not self._leftovers.remove(item):
            return False
        ref, uid = Ref.of(item), item["metadata"].get("uid", "")
        self._secrets.remove(ref.namespace, RunNames(ref.name, ref.namespace, uid).redis, uid)
        return True

    # ------------------------------------------------------------ one run

    def _bring(self, item: Object, run: TrainingRun) -> float | None:
        plan = self._plan(run, Ref.of(item))
        if plan.held:
            self._tell_held(item, plan)
            return HELD_LOOK_SECONDS
        refused = self._carry_out(item, plan)
        # Numbers and Jobs have moved meanwhile: what is told is what is there now.
        view = view_of(self._tools.store.owned(Ref.of(item)), plan.names)
        try:
            waits = [self._tell(item, replace(plan, view=view), refused)]
        except Exception:
            # Suspend counts no failure, so what goes for it need not stand in status first.
            if run.spec.suspend:
                self._remove_over(item, plan)
            raise
        self._remove_over(item, plan)
        if refused is not None:
            raise refused
        waits += [plan.learner.wait_seconds, self._end_of_finished(item, run, plan.course)]
        waits.append(self._contests_of(plan).look_again(self._tools.clock()))
        if plan.waits_for_checkpoint:
            waits.append(CHECKPOINT_LOOK_SECONDS)
        if is_podless(replace(plan, view=view)):
            waits.append(PODLESS_SECONDS)
        return min((wait for wait in waits if wait is not None), default=None)

    def _plan(self, run: TrainingRun, ref: Ref) -> Plan:
        names = RunNames.of(run)
        view = view_of(self._tools.store.owned(ref), names)
        course = course_of(run, view.before_rl or {})
        is_queued = run.spec.queueing is not None
        is_admitted = not is_queued or admitted(view.workload)
        count = Count.of(run.status)
        learner = next_learner(
            replace(count, in_a_row=0) if course.anew else count,
            view.learner,
            view.pods_of(LEARNER),
            wanted=wants_learner(run, course, is_admitted=is_admitted),
            terms=Terms(
                steps=run.spec.steps,
                restart_limit=run.spec.restart_limit,
                checkpoint_step=self._checkpoint_step(run, ref),
                failed=course.finished == "Failed",
                anew=course.anew,
            ),
            now=self._tools.now(),
        )
        if learner.finished and not course.finished:
            course = Course(stage=course.stage, finished=learner.finished, message=learner.message)
        leaving = learner.delete if run.spec.suspend and not course.finished else ()
        self._checkpoints.keep(ref, [_leaving(ref, view, job) for job in leaving])
        waits = not all(self._is_saved(run, names, view, job) for job in leaving)
        return Plan(
            run=run,
            names=names,
            view=view,
            course=course,
            learner=learner,
            is_admitted=is_admitted,
            kueue_unseen=self._tools.kueue_unseen(names.namespace) if is_queued else "",
            waits_for_checkpoint=waits,
        )

    def _checkpoint_step(self, run: TrainingRun, ref: Ref) -> int:
        figures = self._tools.insights.get(ref, run.metadata.uid).learner
        last = (figures.last_checkpoint if figures is not None else None) or run.status.last_checkpoint
        return 0 if last is None else last.step

    def _is_saved(self, run: TrainingRun, names: RunNames, view: View, job: str) -> bool:
        """Whether the learner of this Job may go."""
        ref = Ref("TrainingRun", names.namespace, names.run)
        learner = _leaving(ref, view, job)
        if not any(one.name == job and one.state is JobState.RUNNING for one in view.learner):
            return True
        # Whoever was asked is waited for: its pod may be unready for a moment while it writes.
        if not self._checkpoints.was_asked(learner):
            first = (pod for pod in view.pods_of(LEARNER) if pod.name.startswith(f"{job}-0-"))
            address = next((pod.address for pod in first if pod.ready and pod.address), "")
            if not address:
                return True
            door = self._secrets.learner_door(run, names, f"{address}:{PORTS[LEARNER].grpc}")
            self._checkpoints.ask(learner, door)
        if not self._checkpoints.settled(learner):
            return False
        figures = self._checkpoints.written(learner)
        if figures is not None and figures.steps:
            # Nobody asks this learner again: what it has said last is what status keeps.
            uid = run.metadata.uid
            self._tools.insights.put(ref, uid, replace(self._tools.insights.get(ref, uid), learner=figures))
        return True

    # ------------------------------------------------------------ what is written

    def _carry_out(self, item: Object, plan: Plan) -> Exception | None:
        """Apply, prune, scale, start. The first thing that the server refuses: told to the user, and tried again.

        What is refused holds nothing else up but new Jobs: a run over its quota can still be suspended.
        """
        if plan.kueue_unseen:
            # The nodes that Kueue assigned are not known, so nothing can be applied; it can still come to rest.
            return first_refused([lambda: self._set_numbers(item, plan)])
        manifests, uid = self._manifests(plan), plan.run.metadata.uid
        jobs = [one for one in manifests if one["kind"] == "Job"]
        steps: list[Callable[[], object]] = [lambda: self._secrets.ensure(plan.run, plan.names)]
        steps += [partial(self._apply, plan, one) for one in manifests if one["kind"] != "Job"]
        steps.append(lambda: self._tools.applier.prune(plan.view.owned, manifests, uid))
        steps.append(lambda: self._set_numbers(item, plan))
        refused = first_refused(steps)
        return refused or first_refused([lambda: self._start_jobs(item, plan, jobs)])

    def _apply(self, plan: Plan, manifest: Manifest) -> None:
        there = plan.view.workload
        if manifest["kind"] == "Workload" and there is not None and holds_quota(there):
            # What Kueue has admitted it does not let anybody change; whether it is to be active, it does.
            active = manifest["spec"]["active"]
            if (there.get("spec") or {}).get("active", True) != active:
                self._tools.api.merge(Ref.of(manifest), {"spec": {"active": active}}, MANAGER)
            return
        if manifest["kind"] == "Workload":
            manifest = self._with_priority(plan, manifest)
        self._tools.applier.ensure([manifest])

    def _with_priority(self, plan: Plan, manifest: Manifest) -> Manifest:
        """With the number of its class. Raises NotFound or Forbidden for one that is not there, or not to be read."""
        queueing = plan.run.spec.queueing
        if queueing is None or queueing.priority_class is None:
            return manifest
        priority = priority_kept(plan.view.workload, manifest)
        if priority is None:
            found = self._tools.api.get(Ref("WorkloadPriorityClass", "", queueing.priority_class))
            priority = found["value"]
        return {**manifest, "spec": {**manifest["spec"], "priority": priority}}

    def _manifests(self, plan: Plan) -> list[Manifest]:
        run, stage = plan.run, plan.course.stage
        if stage == DONE and "rl" in stages_in_order(run):
            stage = "rl"
        state = RunState(
            existing=frozenset(plan.view.deployments),
            attempt=plan.learner.attempt if plan.wanted else None,
            epoch=run.status.epoch,
            admitted=plan.is_admitted,
            queued=keeps_workload(plan.view, over=run.spec.suspend or bool(plan.course.finished)),
            stage=stage,
            node_labels=self._flavors.node_labels(plan.view.workload),
        )
        return render_run(run, self._tools.options, state)

    def _set_numbers(self, item: Object, plan: Plan) -> None:
        for stage in stages_of(plan.run):
            name = plan.names.service(service_of(stage))
            deployment = self._tools.store.get(Ref("Deployment", plan.names.namespace, name))
            if deployment is None:
                continue
            number = number_for(deployment, stage_role(plan.run, stage), rest=plan.rest)
            if plan.rest and self._is_left(plan, name, number):
                continue
            # Remembered before it goes to zero, forgotten only once it is back.
            if number.remember is not None and number.remember != remembered(deployment):
                deployment = self._tools.applier.annotate(deployment, {RESUME: str(number.remember)})
            if number.replicas is not None:
                self._tools.applier.scale(deployment, number.replicas)
                note = f"{name} to {number.replicas}: {number.reason}"
                self._tools.recorder.tell(item, "Scale", "Scaled", note)
            if number.remember is None and remembered(deployment) is not None:
                self._tools.applier.annotate(deployment, {RESUME: None})

    def _is_left(self, plan: Plan, name: str, number: Number) -> bool:
        """Whether a number at rest is left to somebody else for now, who writes it again and again."""
        contests, now = self._contests_of(plan), self._tools.clock()
        if number.replicas is None:
            contests.stayed(name, now)
        elif contests.pause(name, now) > 0:
            return True
        else:
            contests.wrote(name, now)
        return False

    def _contests_of(self, plan: Plan) -> Contests:
        ref = Ref("TrainingRun", plan.names.namespace, plan.names.run)
        if not plan.rest:
            self._contests.pop(ref, None)
        return self._contests.setdefault(ref, Contests()) if plan.rest else Contests()

    def _start_jobs(self, item: Object, plan: Plan, jobs: Sequence[Manifest]) -> None:
        if plan.course.finished:
            return
        for job in jobs:
            if self._tools.applier.ensure([job]):
                name = job["metadata"]["name"]
                self._tools.recorder.tell(item, "Start", "Started", f"Job {name} is made")

    def _remove_over(self, item: Object, plan: Plan) -> None:
        """Jobs that are over or not wanted, and pods that cannot end."""
        if plan.waits_for_checkpoint:
            return
        ref = Ref.of(item)
        for job in (*plan.learner.delete, *stage_jobs_to_go(plan)):
            learner = _leaving(ref, plan.view, job)
            there = plan.view.jobs.get(job)
            if there is not None:
                self._tools.applier.delete(there)
            if self._checkpoints.was_asked(learner):
                missed = self._checkpoints.written(learner) is None
                note = f"Job {job} is removed " + (
                    "without a new checkpoint" if missed else "after its checkpoint"
                )
                self._tools.recorder.tell(item, "Suspend", "Suspended", note, warning=missed)
        self._checkpoints.keep(ref)
        for name in plan.learner.force:
            pod = plan.view.object_of("Pod", name)
            if pod is not None:
                self._tools.applier.delete(pod, force=True)

    def _end_of_finished(self, item: Object, run: TrainingRun, course: Course) -> float | None:
        """Delete what has been finished for long enough; seconds until then."""
        seconds = run.spec.ttl_after_finished
        ended = moment(run.status.completion_time)
        if not course.finished or seconds is None:
            return None
        if ended is None:
            return float(seconds)
        left = (ended + timedelta(seconds=seconds) - self._tools.now()).total_seconds()
        if left > 0:
            return left
        self._tools.recorder.tell(item, "Delete", "TtlAfterFinished", f"finished {seconds} s ago")
        self._tools.applier.delete(item)
        return None

    # ------------------------------------------------------------ what is told

    def _tell(self, item: Object, plan: Plan, refused: Exception | None) -> float | None:
        run, now = plan.run, self._tools.now()
        insight = self._tools.insights.get(Ref.of(item), run.metadata.uid)
        roles = self._roles(plan, now)
        working = plan.wanted or plan.waits_for_checkpoint
        facts = RunFacts(
            generation=run.metadata.generation,
            roles=tuple(roles),
            beside=pods_beside(plan, now),
            suspended=run.spec.suspend and not plan.course.finished and not plan.waits_for_checkpoint,
            admitted=plan.is_admitted,
            job="" if plan.course.stage in ("rl", DONE) else plan.course.stage,
            finished=plan.course.finished,
            message=plan.course.message,
            refused=str(refused or ""),
            kueue_unseen=plan.kueue_unseen,
            flavors_unread=self._flavors.unread(plan.view.workload),
            scaling_blind=insight.blind if working else "",
            scaled_at_rest=self._contests_of(plan).told(),
            restarts=plan.learner.count.since(self._checkpoint_step(run, Ref.of(item))),
        )
        conditions = run_conditions(facts, run.status.conditions, now)
        picture = RunPicture(
            course=plan.course,
            count=counted(plan),
            roles=roles,
            insight=insight,
            conditions=conditions,
            now=now,
        )
        wait = self._status.write(item, run_status(run, picture), _as_before(run.status, item))
        if plan.learner.failed_now:
            note = f"attempt {plan.learner.count.counted} failed: {plan.learner.failed_now}"
            self._tools.recorder.tell(item, "Restart", "LearnerFailed", note, warning=True)
        self._tools.recorder.transitions(item, run.status.conditions, conditions)
        return wait

    def _roles(self, plan: Plan, now: datetime) -> list[RoleFacts]:
        ref = Ref("TrainingRun", plan.names.namespace, plan.names.run)
        insight = self._tools.insights.get(ref, plan.run.metadata.uid)
        if plan.course.stage not in ("rl", DONE):
            return []
        roles = []
        for stage in stages_of(plan.run):
            service = service_of(stage)
            deployment = plan.view.deployments.get(plan.names.service(service))
            roles.append(role_facts(service, deployment, plan.view.pods_of(service), insight.role(service)))
        job = plan.view.jobs.get(plan.names.learner_job(plan.learner.attempt or 0))
        replicas, wanted = plan.run.spec.roles.learner.replicas, plan.wanted
        return [*roles, learner_facts(replicas, job, plan.view.pods_of(LEARNER), wanted=wanted, now=now)]

    def _tell_invalid(self, item: Object, error: str) -> None:
        """Say what is wrong. What is there already goes on as it is: half of a spec is worse than the old one."""
        facts = RunFacts(generation=item["metadata"].get("generation", 0), invalid=" ".join(error.split()))
        self._tell_alone(item, facts, ("Degraded", "Progressing"), {"observed_generation": facts.generation})

    def _tell_held(self, item: Object, plan: Plan) -> None:
        """Say why it is left as it is. Its spec has not been looked at, so the generation seen stays what it was."""
        generation = plan.run.metadata.generation
        facts = RunFacts(generation=generation, admitted=False, kueue_unseen=plan.kueue_unseen)
        self._tell_alone(item, facts, ("Degraded",), {})

    def _tell_alone(
        self, item: Object, facts: RunFacts, types: Sequence[str], update: Mapping[str, object]
    ) -> None:
        """Conditions of these types; all of them where nothing was told before. The rest of the status stays."""
        status = TrainingRunStatus.model_validate(item.get("status") or {})
        told = run_conditions(facts, status.conditions, self._tools.now())
        if status.conditions:
            told = tuple(one for one in told if one.type in types)
        said = {condition.type for condition in told}
        kept = tuple(condition for condition in status.conditions if condition.type not in said)
        new = status.model_copy(update={"conditions": (*told, *kept), **update})
        self._status.write(item, as_written(new), _as_before(status, item))
        self._tools.recorder.transitions(item, status.conditions, told)

    def _forget(self, ref: Ref) -> None:
        self._tools.insights.forget(ref)
        self._checkpoints.keep(ref)
        self._contests.pop(ref, None)
        self._status.forget(ref)


def _leaving(run: Ref, view: View, job: str) -> Leaving:
    return Leaving(run, (view.jobs.get(job) or {}).get("metadata", {}).get("uid", ""))


def _as_before(status: TrainingRunStatus, item: Object) -> dict[str, Any]:
    """What stands there now, in the words of this operator; empty where nothing does."""
    return as_written(status) if item.get("status") else {}
