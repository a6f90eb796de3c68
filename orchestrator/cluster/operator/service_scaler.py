"""Measures reward models and scales those that are Auto: scrape, plan, act. Static and External are measured alone.

every interval:  Probe ──▶ ServiceMeter ──▶ planning.decide_service ──▶ mark, /scale (manager trimtab-scaler)
                               ▲       └──▶ ServiceInsight ──▶ status and conditions
                 what runs that refer to it plan (Insights of the run's scaler)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from orchestrator.cluster.control.facts import replicas_of
from orchestrator.cluster.control.insight import ServiceInsight
from orchestrator.cluster.control.pods import PodView
from orchestrator.cluster.control.references import stages_that_refer
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.control.service_meter import ServiceFigures, ServiceMeter, ServiceScrape, busy_share
from orchestrator.cluster.control.view import view_of
from orchestrator.cluster.kinds import RewardModel, read_object
from orchestrator.cluster.names import RewardModelNames
from orchestrator.cluster.operator.mover import Mover
from orchestrator.cluster.operator.probe import Probe
from orchestrator.cluster.operator.scaler import training
from orchestrator.cluster.operator.shared import Tools
from orchestrator.cluster.pipeline import service_spec
from orchestrator.cluster.render.options import PORTS
from orchestrator.planning.observed import ServiceObserved
from orchestrator.planning.serving import ServiceDecision, decide_service
from services.common.errors import InvalidInput


class ServiceScaler:
    """Of all reward models. `told`: hears of each that has news."""

    def __init__(
        self,
        tools: Tools,
        probe: Probe,
        *,
        interval_seconds: float = 15.0,
        told: Callable[[Ref], None] = lambda _model: None,
    ) -> None:
        self._tools, self._probe, self._interval, self._told = tools, probe, interval_seconds, told
        self._mover = Mover(tools)
        # With the uid of the model that is measured: one made anew under its name has counted nothing.
        self._meters: dict[Ref, tuple[str, ServiceMeter]] = {}
        self._lock = threading.Lock()

    def handle(self, ref: Ref) -> float | None:
        """One look at one reward model; seconds until the next, None where it is gone or cannot be read."""
        item = self._tools.store.get(ref)
        model = None if item is None else _serving(item)
        if item is None or model is None:
            with self._lock:
                self._meters.pop(ref, None)
            self._tools.service_insights.forget(ref)
            return None
        view = view_of(self._tools.store.owned(ref))
        deployment = view.deployments.get(RewardModelNames.of(model).name)
        if deployment is None:
            return self._interval
        pods = [pod for of_service in view.pods.values() for pod in of_service]
        meter = self._meter(ref, model.metadata.uid)
        scrape = self._scrape(model, pods)
        observed = meter.observed(replicas_of(deployment), pods, scrape, self._tools.now())
        decision = decide_service(service_spec(model), observed, self._tools.clock())
        meter.memory = decision.memory
        for action in decision.actions:
            self._mover.act(item, view, deployment, action)
        if model.spec.scaling.mode != "Auto":
            self._mover.take_marks_off(view, pods)
        uid = model.metadata.uid
        digests = _digests(model, self._tools.service_insights.get(ref, uid).digests, scrape.pods, pods)
        insight = _insight(model, decision, observed, scrape.pods, pods)
        if self._tools.service_insights.put(ref, uid, replace(insight, digests=digests)):
            self._told(ref)
        return self._interval

    def _scrape(self, model: RewardModel, pods: Sequence[PodView]) -> ServiceScrape:
        targets = {
            pod.name: (pod.address, PORTS["reward"].metrics)
            for pod in pods
            if (pod.ready or pod.draining is not None) and pod.address and pod.deleting is None
        }
        sent, will = self._of_runs(model)
        at = self._tools.clock()
        return ServiceScrape(at=at, pods=self._probe.services(targets), runs_rows=sent, runs_will=will)

    def _of_runs(self, model: RewardModel) -> tuple[float, float]:
        """Rows/s that runs send it, and will send once all of their pipeline does what is planned."""
        sent, will = 0.0, 0.0
        for item in self._tools.store.all("TrainingRun"):
            services = stages_that_refer(item, model.metadata.namespace, model.metadata.name)
            run = training(item) if services else None
            if run is None:
                continue
            insight = self._tools.insights.get(Ref.of(item), run.metadata.uid)
            rows = run.spec.rollout.completions_per_prompt
            for service in services:
                measured = insight.role(service).groups_per_second
                if measured is None or insight.planned is None:
                    continue
                sent += rows * measured
                will += rows * insight.planned
        return sent, will

    def _meter(self, ref: Ref, uid: str) -> ServiceMeter:
        with self._lock:
            of, meter = self._meters.get(ref, (uid, None))
            if meter is None or of != uid:
                meter = ServiceMeter()
                self._meters[ref] = uid, meter
            return meter


def _serving(item: Object) -> RewardModel | None:
    if item["metadata"].get("deletionTimestamp"):
        return None
    try:
        return read_object(RewardModel, item)
    except InvalidInput:
        return None


def _digests(
    model: RewardModel,
    before: Mapping[str, str],
    answers: Mapping[str, ServiceFigures],
    pods: Sequence[PodView],
) -> dict[str, str]:
    """By pod, as its page says now; one lost scrape changes nothing. The shadow's is another name's."""
    said = {name: figures.digests.get(model.metadata.name, "") for name, figures in answers.items()}
    known = {**before, **said}
    return {pod.name: known[pod.name] for pod in pods if known.get(pod.name)}


def _insight(
    model: RewardModel,
    decision: ServiceDecision,
    observed: ServiceObserved,
    answers: Mapping[str, ServiceFigures],
    pods: Sequence[PodView],
) -> ServiceInsight:
    auto = model.spec.scaling.mode == "Auto"
    share, rate = busy_share(observed), decision.memory.rate
    lost = observed.metrics is None
    return ServiceInsight(
        backlog_rows=None if lost else sum(one.waiting for one in answers.values()),
        rows_per_second=None if lost or rate is None else round(rate, 2),
        busy_share=None if share is None else round(share, 2),
        wanted=decision.wanted if auto else None,
        reason="; ".join((decision.reason, *decision.limits)) if auto else "",
        draining=sum(pod.draining is not None and pod.deleting is None for pod in pods),
        blind=decision.blind,
        measured=True,
    )
