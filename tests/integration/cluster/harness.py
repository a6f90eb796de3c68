"""Reconciles one at a time against an API server, and says what was written. Works with any server.

What controllers of a cluster would write (a Job that fails, a pod that runs) the tests write themselves, through the
API, so the same tests run where there are such controllers and where there are none.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from kubernetes.client import ApiClient

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.insight import Insight
from orchestrator.cluster.control.resources import PRUNED, WATCHED, Object, Ref
from orchestrator.cluster.control.store import Store
from orchestrator.cluster.operator.checkpoints import Checkpoints
from orchestrator.cluster.operator.leftovers import Leftovers
from orchestrator.cluster.operator.models import RewardModelReconciler
from orchestrator.cluster.operator.reflector import slim
from orchestrator.cluster.operator.runs import RunReconciler
from orchestrator.cluster.operator.scaler import Scaler
from orchestrator.cluster.operator.secrets import RunSecrets
from orchestrator.cluster.operator.service_scaler import ServiceScaler
from orchestrator.cluster.operator.shared import make_tools
from services.common.errors import NotFound
from tests.fakes.clock import FakeClock
from tests.fakes.probe import FakeProbe

T = TypeVar("T")

TESTER = "test"
PATIENCE_SECONDS = 20.0


class Never(Executor):
    """Takes work and never does it, unless the test says what it came to."""

    def __init__(self) -> None:
        self.taken: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.taken.append(Future())
        return self.taken[-1]


class AtOnce(Executor):
    """Runs what it is given before it returns."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


class Harness:
    """An operator taken apart: a look, then one reconcile, as often as the test says."""

    def __init__(self, client: ApiClient, namespace: str, *, real: bool = False) -> None:
        self.api, self.namespace, self.real = Api(client), namespace, real
        self.probe, self.clock = FakeProbe(), FakeClock()
        self.wrote: list[tuple[str, str]] = []
        self.kinds = WATCHED
        self.ahead = timedelta()
        """Of the operator's wall clock before ours."""
        self.restart()

    def restart(self) -> None:
        """Another process: nothing is remembered."""
        self.store = Store()
        gated = self.api.gated(lambda: None, lambda kind, verb: self.wrote.append((kind, verb)))
        self.tools = make_tools(
            gated,
            self.store,
            TESTER,
            clock=self.clock,
            now=lambda: datetime.now(UTC) + self.ahead,
            status_seconds=10.0,
            kueue_unseen=lambda _namespace: "" if "Workload" in self.kinds else "nobody answers",
        )
        secrets = RunSecrets(gated)
        checkpoints = Checkpoints(self.probe, AtOnce(), clock=self.clock)
        self.runs = RunReconciler(self.tools, secrets, checkpoints, self._leftovers(secrets))
        self.models = RewardModelReconciler(self.tools)
        self.scaler = Scaler(self.tools, self.probe, secrets)
        self.services = ServiceScaler(self.tools, self.probe)

    def never_writes_checkpoints(self) -> Never:
        """The learner is asked for one and does not answer."""
        never = Never()
        checkpoints = Checkpoints(self.probe, never, clock=self.clock)
        secrets = RunSecrets(self.tools.api)
        self.runs = RunReconciler(self.tools, secrets, checkpoints, self._leftovers(secrets))
        return never

    def _leftovers(self, secrets: RunSecrets) -> Leftovers:
        return Leftovers(self.tools, secrets, self.probe)

    # ------------------------------------------------------------ acting

    def submit(self, item: Object) -> Object:
        """As a user applies it, in this test's namespace and without a uid; no scheduler takes its pods up."""
        metadata = {"name": item["metadata"]["name"], "namespace": self.namespace}
        return self.api.apply({**item, "metadata": metadata, "spec": left_alone(item)}, TESTER)

    def look(self) -> None:
        """Fill the cache from fresh lists."""
        for kind in self.kinds:
            listing = self.api.list(kind, self.namespace)
            self.store.replace(kind, self.namespace, map(slim, listing.items), listing.version)

    def reconcile(self, name: str = "helpful", kind: str = "TrainingRun") -> float | None:
        """One look and one reconcile."""
        self.look()
        handle = self.runs.handle if kind == "TrainingRun" else self.models.handle
        return handle(Ref(kind, self.namespace, name))

    def settle(self, name: str = "helpful", kind: str = "TrainingRun") -> list[tuple[str, str]]:
        """Reconcile until nothing is written; all that was."""
        before = len(self.wrote)
        for _ in range(12):
            count = len(self.wrote)
            self.reconcile(name, kind)
            if len(self.wrote) == count:
                return self.wrote[before:]
        raise AssertionError(f"never at rest: {self.wrote[before:]}")

    def bring(self, question: Callable[[], object], name: str = "helpful") -> None:
        """Reconcile until it is so: where a cluster's controllers run, pods take their time to go."""

        def asked() -> object:
            self.reconcile(name)
            return question()

        eventually(asked)
        self.settle(name)

    def bring_job(self, job: str) -> None:
        """Reconcile until this is the one Job that there is; any back-off is over."""
        before, self.ahead = self.ahead, self.ahead + timedelta(minutes=6)

        def brought() -> bool:
            self.reconcile()
            return self.names("Job") == {job}

        eventually(brought)
        # Nobody makes its pods here: six minutes later that is a trouble of its own.
        self.ahead = before
        self.settle()

    def measured(self, insight: Insight, name: str = "helpful") -> None:
        """As if the scaler had seen this of a run."""
        item = self.get("TrainingRun", name)
        self.tools.insights.put(Ref.of(item), item["metadata"]["uid"], insight)

    # ------------------------------------------------------------ looking

    def at_rest(self) -> dict[tuple[str, str], str]:
        """The versions of everything, once they have not moved for a while."""
        pause = 2.0 if self.real else 0.3
        before: dict[tuple[str, str], str] = {}
        ends = time.monotonic() + 3 * PATIENCE_SECONDS
        while (now := self.versions()) != before:
            assert time.monotonic() < ends, "never at rest"
            before = now
            time.sleep(pause)
        return before

    def get(self, kind: str, name: str) -> Object:
        return self.api.get(Ref(kind, self.namespace, name))

    def find(self, kind: str, name: str) -> Object | None:
        try:
            return self.get(kind, name)
        except NotFound:
            return None

    def names(self, kind: str) -> set[str]:
        return {item["metadata"]["name"] for item in self.api.list(kind, self.namespace).items}

    def replicas(self, deployment: str) -> int:
        return int(self.get("Deployment", deployment)["spec"]["replicas"])

    def conditions(self, name: str = "helpful", kind: str = "TrainingRun") -> dict[str, tuple[str, str]]:
        status = self.get(kind, name).get("status") or {}
        return {one["type"]: (one["status"], one["reason"]) for one in status.get("conditions", ())}

    def status(self, name: str = "helpful") -> dict[str, Any]:
        return self.get("TrainingRun", name).get("status") or {}

    def events(self) -> list[tuple[str, str]]:
        items = self.api.list("Event", self.namespace).items
        return [(item["reason"], item.get("note", "")) for item in items]

    def versions(self) -> dict[tuple[str, str], str]:
        """Of everything that the operator makes, and of the runs; without what a cluster puts into each namespace."""
        return {
            (kind, item["metadata"]["name"]): item["metadata"]["resourceVersion"]
            for kind in (
                "TrainingRun",
                "RewardModel",
                "Secret",
                *(one for one in PRUNED if one != "Workload"),
            )
            for item in self.api.list(kind, self.namespace).items
            if not item["metadata"]["name"].endswith(("default", "-ca.crt"))
        }

    # ------------------------------------------------------------ what a cluster would do

    def change(self, spec: Object, name: str = "helpful", kind: str = "TrainingRun") -> None:
        """A user's merge patch of the spec."""
        self.api.merge(Ref(kind, self.namespace, name), {"spec": spec}, "kubectl")

    def kubectl_scale(self, deployment: str, replicas: int) -> None:
        self.api.merge(
            Ref("Deployment", self.namespace, deployment),
            {"spec": {"replicas": replicas}},
            "kubectl",
            "scale",
        )

    def either(self, told: T, unplaced: T) -> tuple[T, ...]:
        """What may stand in status: a real server may have a scheduler that finds no node for the pods."""
        return (told, unplaced) if self.real else (told,)

    def end_job(self, name: str, how: str, message: str = "") -> None:
        """Complete or Failed, as the Job controller writes it."""
        now = api_time()
        started = (self.get("Job", name).get("status") or {}).get("startTime", now)
        before = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[how]
        conditions = [
            {
                "type": kind,
                "status": "True",
                "reason": "Test",
                "message": message,
                "lastProbeTime": now,
                "lastTransitionTime": now,
            }
            for kind in (before, how)
        ]
        ended = {"completionTime": now, "succeeded": 1} if how == "Complete" else {"failed": 1}
        status = {
            "conditions": conditions,
            "startTime": started,
            "active": 0,
            "ready": 0,
            "terminating": 0,
            **ended,
        }
        self.api.merge(Ref("Job", self.namespace, name), {"status": status}, TESTER, "status")

    def add_pod(self, owner: Object, name: str, status: dict[str, Any], **metadata: Any) -> Object:
        """A pod of a Job or Deployment."""
        template = owner["spec"]["template"]
        made = self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": self.namespace,
                    "labels": template["metadata"]["labels"],
                    "ownerReferences": [
                        {
                            "apiVersion": owner["apiVersion"],
                            "kind": owner["kind"],
                            "name": owner["metadata"]["name"],
                            "uid": owner["metadata"]["uid"],
                            "controller": True,
                        }
                    ],
                    **metadata,
                },
                "spec": template["spec"],
            },
            TESTER,
        )
        return self.api.merge(Ref.of(made), {"status": status}, TESTER, "status")


def left_alone(item: Object) -> Object:
    """Its spec, with pods that wait for a scheduler that nobody runs: tests write themselves what becomes of them."""
    waits = {"podTemplate": {"spec": {"schedulerName": "nobody"}}}
    spec: Object = copy.deepcopy(item["spec"])
    settings = [spec]
    if item["kind"] == "TrainingRun":
        roles, stages = spec.setdefault("roles", {}), spec.get("stages", {})
        settings = [roles.setdefault(role, {}) for role in ("policy", "reference", "reward", "learner")]
        settings += [stages[job] for job in ("sft", "rewardModel") if job in stages]
    for one in settings:
        one.update(waits)
    return spec


def running(address: str = "10.0.0.7") -> dict[str, Any]:
    """The status of a pod that serves."""
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": api_time()}
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": api_time()}, ready],
    }


def eventually(question: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until it is so; AssertionError when it never is."""
    ends = time.monotonic() + seconds
    while not question():
        if time.monotonic() > ends:
            raise AssertionError("it did not come to be in time")
        time.sleep(0.02)


def api_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
