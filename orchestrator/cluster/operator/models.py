"""Reconciles a RewardModel: its objects, its number, its status. Knows no way to score."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from orchestrator.cluster.client.errors import first_refused
from orchestrator.cluster.conditions import RewardModelFacts, reward_model_conditions
from orchestrator.cluster.control.facts import replicas_of, role_facts
from orchestrator.cluster.control.insight import RoleInsight, ServiceInsight
from orchestrator.cluster.control.references import stages_that_refer
from orchestrator.cluster.control.replicas import number_for
from orchestrator.cluster.control.resources import Object, Ref
from orchestrator.cluster.control.status import as_written
from orchestrator.cluster.control.view import View, view_of
from orchestrator.cluster.kinds import RewardModel, RewardModelStatus, read_object
from orchestrator.cluster.names import RewardModelNames
from orchestrator.cluster.operator.shared import Tools
from orchestrator.cluster.operator.status_writer import StatusWriter
from orchestrator.cluster.render import render_reward_model
from orchestrator.cluster.render.options import PORTS
from services.common.digests import same_digest
from services.common.errors import InvalidInput

NOT_YET = "nothing was measured yet"


class RewardModelReconciler:
    """Brings reward models to where their specs say."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._status = StatusWriter(tools.api, tools.store, seconds=tools.status_seconds, clock=tools.clock)

    def handle(self, ref: Ref) -> float | None:
        """One reconcile; seconds after which to look again."""
        item = self._tools.store.get(ref)
        if item is None:
            self._status.forget(ref)
            return None
        if item["metadata"].get("deletionTimestamp"):
            return self._tools.finaliser.end(item, self._tools.now())
        item = self._tools.finaliser.guard(item)
        try:
            model = read_object(RewardModel, item)
        except InvalidInput as error:
            self._tell_invalid(item, str(error))
            return None
        return self._bring(item, model)

    def _bring(self, item: Object, model: RewardModel) -> float | None:
        refused = self._carry_out(item, model)
        view = view_of(self._tools.store.owned(Ref.of(item)))
        wait = self._tell(item, model, view, str(refused or ""))
        if refused is not None:
            raise refused
        return wait

    def _carry_out(self, item: Object, model: RewardModel) -> Exception | None:
        """The first thing that the server refuses, if any."""
        ref, uid = Ref.of(item), model.metadata.uid
        place = Ref("Deployment", ref.namespace, ref.name)
        creating = self._tools.store.get(place) is None
        manifests = render_reward_model(model, self._tools.options, creating=creating)
        steps: list[Callable[[], object]] = [partial(self._tools.applier.ensure, [one]) for one in manifests]
        steps.append(lambda: self._tools.applier.prune(self._tools.store.owned(ref), manifests, uid))
        steps.append(lambda: self._set_number(item, model, place))
        return first_refused(steps)

    def _set_number(self, item: Object, model: RewardModel, place: Ref) -> None:
        deployment = self._tools.store.get(place)
        number = None if deployment is None else number_for(deployment, model.spec, rest=False)
        if deployment is None or number is None or number.replicas is None:
            return
        self._tools.applier.scale(deployment, number.replicas)
        note = f"{place.name} to {number.replicas}: {number.reason}"
        self._tools.recorder.tell(item, "Scale", "Scaled", note)

    # ------------------------------------------------------------ what is told

    def _tell(self, item: Object, model: RewardModel, view: View, refused: str) -> float | None:
        names = RewardModelNames.of(model)
        deployment = view.deployments.get(names.name)
        pods = [pod for of_service in view.pods.values() for pod in of_service]
        role = role_facts("reward", deployment, pods, RoleInsight())
        seen = self._tools.service_insights.get(Ref.of(item), model.metadata.uid)
        auto = model.spec.scaling.mode == "Auto"
        digest = _digest(model, view, seen)
        facts = RewardModelFacts(
            generation=model.metadata.generation,
            role=role,
            digest=digest,
            pinned=model.spec.digest or "",
            refused=refused,
            scaling_blind=(seen.blind if seen.measured else NOT_YET) if auto else "",
            scaling="" if auto else f"{model.spec.scaling.mode}: the planner does not decide",
        )
        conditions = reward_model_conditions(facts, model.status.conditions, self._tools.now())
        selector = ",".join(f"{key}={value}" for key, value in sorted(names.selector.items()))
        status = RewardModelStatus(
            observed_generation=model.metadata.generation,
            conditions=conditions,
            replicas=0 if deployment is None else replicas_of(deployment),
            ready_replicas=role.ready,
            selector=selector,
            digest=digest or model.status.digest,
            address=f"{names.host}:{PORTS['reward'].grpc}",
            runs=self._runs(model),
            backlog_rows=seen.backlog_rows,
            rows_per_second=seen.rows_per_second,
            busy_share=seen.busy_share,
            wanted=seen.wanted,
            draining=seen.draining,
            reason=seen.reason[:1024],
        )
        wait = self._status.write(item, as_written(status), _as_before(model.status, item))
        self._tools.recorder.transitions(item, model.status.conditions, conditions)
        return wait

    def _runs(self, model: RewardModel) -> int:
        """Runs that refer to it."""
        place = (model.metadata.namespace, model.metadata.name)
        return sum(bool(stages_that_refer(run, *place)) for run in self._tools.store.all("TrainingRun"))

    def _tell_invalid(self, item: Object, error: str) -> None:
        status = RewardModelStatus.model_validate(item.get("status") or {})
        generation = item["metadata"].get("generation", 0)
        role = role_facts("reward", None, (), RoleInsight())
        facts = RewardModelFacts(generation=generation, role=role, invalid=" ".join(error.split()))
        told = reward_model_conditions(facts, status.conditions, self._tools.now())
        # What serves goes on serving: only what is wrong with the spec is said anew.
        kept = tuple(one for one in status.conditions if one.type != "Degraded")
        wrong = tuple(one for one in told if one.type == "Degraded" or not kept)
        conditions = (*wrong, *(one for one in kept if one.type not in {said.type for said in wrong}))
        new = status.model_copy(update={"conditions": conditions, "observed_generation": generation})
        self._status.write(item, as_written(new), _as_before(status, item))
        self._tools.recorder.transitions(item, status.conditions, wrong)


def _digest(model: RewardModel, view: View, seen: ServiceInsight) -> str:
    """What the ready replicas serve: the first that differs from the pin, if any does; empty: none has said."""
    if not seen.measured:
        return model.status.digest
    pods = [pod for of_service in view.pods.values() for pod in of_service if pod.ready]
    known = [seen.digests[pod.name] for pod in pods if pod.name in seen.digests]
    pinned = model.spec.digest
    wrong = (digest for digest in known if pinned is not None and not same_digest(digest, pinned))
    return next(wrong, known[0] if known else "")


def _as_before(status: RewardModelStatus, item: Object) -> dict[str, Any]:
    return as_written(status) if item.get("status") else {}
