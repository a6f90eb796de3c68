"""Carries out what the planner decides: marks of pods, their deletion cost, /scale. Knows no planner and no metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.cluster.control.pods import PodView
from orchestrator.cluster.control.resources import Object
from orchestrator.cluster.control.view import View
from orchestrator.cluster.names import DRAIN
from orchestrator.cluster.operator.elector import micro_time
from orchestrator.cluster.operator.shared import Tools
from orchestrator.planning.actions import Action, Drain, Remember, Scale

COST = "controller.kubernetes.io/pod-deletion-cost"
"""A ReplicaSet that shrinks takes the pods with the lowest first."""
DRAINED_COST = "-1000"


class Mover:
    """Of all owners."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def act(self, owner: Object, view: View, deployment: Object | None, action: Action) -> None:
        """One action on the pods of one Deployment of `owner`, which hears of a new number by an Event."""
        if isinstance(action, Remember):
            return
        if isinstance(action, Scale):
            self._scale(owner, view, deployment, action)
        elif isinstance(action, Drain):
            since = micro_time(self._tools.now())
            self._mark(view, action.replica, {DRAIN: since, COST: DRAINED_COST})
        else:
            self._mark(view, action.replica, {DRAIN: None, COST: None})

    def take_marks_off(self, view: View, pods: Iterable[PodView]) -> None:
        """Of pods that nobody drains (any more): one that stayed marked would rest for ever."""
        for pod in pods:
            if pod.draining is not None and pod.deleting is None:
                self._mark(view, pod.name, {DRAIN: None, COST: None})

    def _scale(self, owner: Object, view: View, deployment: Object | None, action: Scale) -> None:
        if deployment is None:
            return
        for pod in action.remove:
            self._mark(view, pod, {COST: DRAINED_COST})
        self._tools.applier.scale(deployment, action.replicas)
        note = f"{action.role} to {action.replicas}: {action.reason}"
        self._tools.recorder.tell(owner, "Scale", "Scaled", note)

    def _mark(self, view: View, pod: str, annotations: Mapping[str, str | None]) -> None:
        found = view.object_of("Pod", pod)
        if found is not None:
            self._tools.applier.annotate(found, annotations)
