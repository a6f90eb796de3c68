"""What can be done with a pod beside writing it: binding it to a node, evicting it within its disruption budget."""

from __future__ import annotations

from typing import Any

from tests.fakes.kube import errors
from tests.fakes.kube.decoding import Target
from tests.fakes.kube.deletion import DeleteOptions, delete
from tests.fakes.kube.selectors import labels_match, selector_requirements
from tests.fakes.kube.store import Store, Stored

_BUDGETS = "poddisruptionbudgets.policy"


def bind(store: Store, pod: Stored, binding: Any) -> None:
    """Set the node. ApiError 409 for a pod that has one."""
    if pod.obj["spec"].get("nodeName"):
        why = f'pod {pod.name} is already assigned to node "{pod.obj["spec"]["nodeName"]}"'
        raise errors.conflict("", "pods/binding", pod.name, why)
    spec = pod.obj["spec"] | {"nodeName": binding["target"]["name"]}
    store.put("pods", pod.obj | {"spec": spec})


def evict(store: Store, target: Target, pod: Stored, eviction: Any, now: str) -> None:
    """Delete a pod unless a budget forbids it (429), and take it from the budget."""
    for budget in list(store.each(_BUDGETS, pod.namespace)):
        selector = (budget.obj.get("spec") or {}).get("selector") or {}
        if not selector or not labels_match(selector_requirements(selector), pod.obj):
            continue
        status = budget.obj.get("status") or {}
        if status.get("disruptionsAllowed", 0) < 1:
            words = "Cannot evict pod as it would violate the pod's disruption budget."
            causes = [
                {
                    "reason": "DisruptionBudget",
                    "message": f"The disruption budget {budget.name} does not allow it.",
                }
            ]
            raise errors.ApiError(429, "TooManyRequests", words, {"causes": causes})
        left = status | {"disruptionsAllowed": status["disruptionsAllowed"] - 1}
        store.put(_BUDGETS, budget.obj | {"status": left})
    delete(store, target, pod, DeleteOptions.read((eviction or {}).get("deleteOptions"), {}), now)
