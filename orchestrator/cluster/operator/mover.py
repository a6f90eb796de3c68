"""Carries out what the planner decides: marks of pods, their deletion cost, /scale. Knows no planner and no metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestrator.cluster.control.facts import replicas_of
from orchestrator.cluster.control.pods import PodView
from orchestrator.cluster.control.resources import Object, Ref
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
        """One action on the pods of one Deployment of `owner`, which hears of a new number by an Event.

        The action rests on `owner` and `deployment` as they are given; where they are otherwise by now, it is left.
        """
        if isinstance(action, Remember) or self._as_seen(owner, _generation) is None:
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
        there = None if deployment is None else self._as_seen(deployment, replicas_of)
        if there is None:
            return
        for pod in action.remove:
            self._mark(view, pod, {COST: DRAINED_COST})
        self._tools.applier.scale(there, action.replicas)
        note = f"{action.role} to {action.replicas}: {action.reason}"
        self._tools.recorder.tell(owner, "Scale", "Scaled", note)

    def _as_seen(self, seen: Object, what: Callable[[Object], object]) -> Object | None:
        """As it is now, where `what` of it is what it was; None where it is not, or is another."""
        there = self._tools.store.get(Ref.of(seen))
        same = there is not None and _uid(there) == _uid(seen) and what(there) == what(seen)
        return there if same else None

    def _mark(self, view: View, pod: str, annotations: Mapping[str, str | None]) -> None:
        found = view.object_of("Pod", pod)
        if found is not None:
            self._tools.applier.annotate(found, annotations)


def _uid(item: Mapping[str, Any]) -> object:
    return item["metadata"].get("uid")


def _generation(item: Mapping[str, Any]) -> object:
    """Of the spec, and of whether it is being deleted."""
    return item["metadata"].get("generation")
