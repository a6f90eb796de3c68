"""Measures runs that train and scales their Auto roles: scrape, plan, act. Static and External need none of it.

    every interval:  Probe ──▶ Meter ──▶ planning.decide ──▶ drain, /scale   (field manager trimtab-scaler)
                                │
                                └──▶ Insights ──▶ status and conditions
What the planner remembers stays in this process: losing it, when another replica leads, costs minutes of accuracy, and
an annotation would be a write per run and interval.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from orchestrator.cluster.control.facts import replicas_of
from orchestrator.cluster.control.insight import Insight, LearnerFigures, RoleInsight
from orchestrator.cluster.control.meter import Meter, RolePods, Scrape, idle_share
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.control.view import LEARNER, View, view_of
from orchestrator.cluster.kinds import TrainingRun, read_object
from orchestrator.cluster.names import RunNames, service_of
from orchestrator.cluster.operator.metrics import BLIND
from orchestrator.cluster.operator.mover import Mover
from orchestrator.cluster.operator.probe import Probe
from orchestrator.cluster.operator.secrets import RunSecrets
from orchestrator.cluster.operator.shared import Tools
from orchestrator.cluster.pipeline import pipeline_spec
from orchestrator.cluster.render.options import PORTS
from orchestrator.cluster.render.services import stage_role, stages_of
from orchestrator.planning.actions import Remember
from orchestrator.planning.decision import Decision
from orchestrator.planning.observed import Observed
from orchestrator.planning.scaling import decide
from orchestrator.planning.spec import Auto
from services.common.errors import InvalidInput


class Scaler:
    """Of all runs. `interval_seconds`: between two looks at one run. `told`: hears of each run that has news."""

    def __init__(
        self,
        tools: Tools,
        probe: Probe,
        secrets: RunSecrets,
        *,
        interval_seconds: float = 15.0,
        told: Callable[[Ref], None] = lambda _run: None,
    ) -> None:
        self._told = told
        self._tools, self._probe, self._secrets, self._interval = tools, probe, secrets, interval_seconds
        self._mover = Mover(tools)
        # With the uid of the run that is measured: one made anew under its name has counted nothing.
        self._meters: dict[Ref, tuple[str, Meter]] = {}
        self._lock = threading.Lock()

    def handle(self, ref: Ref) -> float | None:
        """One look at one run; seconds until the next, None where nothing trains."""
        item = self._tools.store.get(ref)
        run = None if item is None else training(item)
        if item is None or run is None:
            self._forget(ref)
            return None
        names = RunNames.of(run)
        view = view_of(self._tools.store.owned(ref), names)
        roles = _role_pods(run, names, view)
        if not view.learner and not any(role.desired for role in roles.values()):
            return self._interval
        scrape = self._scrape(run, names, view, roles)
        # A scrape takes seconds, in which the run may have been suspended, have ended, or have become another.
        now = self._tools.store.get(ref)
        if now is None or now["metadata"].get("uid") != run.metadata.uid or training(now) is None:
            return self._interval
        meter = self._meter(ref, run.metadata.uid)
        seconds = meter.seconds_since_last(scrape)
        observed = meter.observed(roles, scrape, self._tools.now())
        decision = decide(pipeline_spec(run), observed, self._tools.clock())
        meter.memory = decision.memory
        auto = {role.name for role in pipeline_spec(run).roles if isinstance(role.scaling, Auto)}
        for action in decision.actions:
            if not isinstance(action, Remember) and action.role in auto:
                self._mover.act(item, view, view.deployments.get(names.service(action.role)), action)
        for name, role in roles.items():
            if name not in auto:
                self._mover.take_marks_off(view, role.pods)
        self._keep(ref, run.metadata.uid, _insight(decision, observed, scrape, meter, roles, seconds, auto))
        return self._interval

    # ------------------------------------------------------------ looking

    def _scrape(self, run: TrainingRun, names: RunNames, view: View, roles: Mapping[str, RolePods]) -> Scrape:
        at = self._tools.clock()
        targets = {
            pod.name: (pod.address, PORTS[service.partition("-")[0]].metrics)
            for service, role in roles.items()
            for pod in role.pods
            # What drains is not ready, and is asked whether it holds anything yet.
            if (pod.ready or pod.draining is not None) and pod.address and pod.deleting is None
        }
        # Who asks a server that is not up yet waits for nothing.
        asked = run.spec.redis.owned is None or any(pod.ready for pod in view.pods_of("redis"))
        queue = self._secrets.queue_door(run, names) if asked else None
        backlog = None if queue is None else self._probe.backlog(queue, names.run_uid)
        learner = self._learner(run, names, view)
        if queue is not None and backlog is None:
            self._secrets.forget_queue(run.metadata.uid)
        for what, seen in (("backlog", backlog), ("learner", learner)):
            if seen is None:
                BLIND.labels(what).inc()
        return Scrape(at=at, pods=self._probe.pods(targets), backlog=backlog, learner=learner)

    def _learner(self, run: TrainingRun, names: RunNames, view: View) -> LearnerFigures | None:
        ready = [
            pod for pod in view.pods_of(LEARNER) if pod.address and pod.deleting is None and not pod.ended
        ]
        newest = max(view.learner, key=lambda job: job.attempt, default=None)
        if newest is None:
            return None
        first = next((pod for pod in ready if pod.name.startswith(f"{newest.name}-0")), None)
        if first is None:
            return None
        place = f"{first.address}:{PORTS[LEARNER].grpc}"
        return self._probe.learner(self._secrets.learner_door(run, names, place))

    # ------------------------------------------------------------ remembering

    def _meter(self, ref: Ref, uid: str) -> Meter:
        with self._lock:
            of, meter = self._meters.get(ref, (uid, None))
            if meter is None or of != uid:
                meter = Meter()
                self._meters[ref] = uid, meter
            return meter

    def _keep(self, ref: Ref, uid: str, insight: Insight) -> None:
        before = self._tools.insights.get(ref, uid).learner
        if insight.learner is None and before is not None:
            # Between two attempts nobody answers; what was known of the run is still true.
            insight = replace(insight, learner=before)
        if self._tools.insights.put(ref, uid, insight):
            self._told(ref)

    def _forget(self, ref: Ref) -> None:
        with self._lock:
            self._meters.pop(ref, None)


def training(item: Object) -> TrainingRun | None:
    """The run, where it is to have pods now."""
    if item["metadata"].get("deletionTimestamp") or (item.get("spec") or {}).get("suspend"):
        return None
    try:
        run = read_object(TrainingRun, item)
    except InvalidInput:
        return None
    over = any(one.type == "Finished" and one.status == "True" for one in run.status.conditions)
    return None if over or run.status.stage != "rl" else run


def _role_pods(run: TrainingRun, names: RunNames, view: View) -> dict[str, RolePods]:
    found = {}
    for stage in stages_of(run):
        service = service_of(stage)
        deployment = view.deployments.get(names.service(service))
        found[service] = RolePods(
            desired=0 if deployment is None else replicas_of(deployment),
            pods=view.pods_of(service),
            slots=stage_role(run, stage).slots,
        )
    return found


def _insight(
    decision: Decision,
    observed: Observed,
    scrape: Scrape,
    meter: Meter,
    roles: Mapping[str, RolePods],
    seconds: float,
    auto: set[str],
) -> Insight:
    seen = {}
    for told in decision.roles:
        role, metrics = roles[told.role], observed.roles[told.role].metrics
        seen[told.role] = RoleInsight(
            backlog_groups=(scrape.backlog or {}).get(told.role),
            idle_share=idle_share(role, metrics, seconds),
            wanted=told.wanted if told.role in auto else None,
            reason=told.reason if told.role in auto else "",
            draining=sum(pod.draining is not None for pod in role.pods),
            unserved_seconds=meter.unserved_seconds(told.role, role, scrape),
            groups_per_second=None if metrics is None or not seconds else metrics.completed_groups / seconds,
        )
    planned = None if decision.flow is None else decision.flow.planned
    return Insight(learner=scrape.learner, roles=seen, blind=_blind(decision, auto), planned=planned)


def _blind(decision: Decision, auto: set[str]) -> str:
    """Why an Auto role stands still; empty where none does, or there is none."""
    still = [
        role.reason for role in decision.roles if role.role in auto and role.reason.startswith("stands still")
    ]
    return still[0].partition(": ")[2] if still else ""
