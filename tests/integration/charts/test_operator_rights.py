"""The operator at work, configured by the chart, on a server that refuses what the chart does not grant."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from kubernetes.client import ApiClient

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.crds import crds
from orchestrator.cluster.operator.config import LeaseSpec, OperatorConfig
from orchestrator.cluster.operator.manager import Operator
from tests.fakes.kube import KubeServer
from tests.fakes.kube.errors import ApiError
from tests.fakes.kube.faults import Call
from tests.fakes.probe import FakeProbe
from tests.integration.charts.rendering import Manifest, named, of_kind, render
from tests.integration.cluster.harness import eventually
from tests.unit.orchestrator.cluster.objects import MODEL, RUN, changed

SYSTEM, RUNS = "trimtab-system", "rlhf"
VALUES = {"operator": {"namespaces": [RUNS]}}
TESTER = "tester"
NOT_TRIED = {
    ("patch", "pods"): "a drain marks them; the probe of this test has no figures, so nothing is drained",
    ("delete", "pods"): "by force, where a node is gone",
    ("delete", "trainingruns.trimtab.dev"): "ttlAfterFinished",
    ("delete", "rewardmodels.trimtab.dev"): "with them",
    (
        "update",
        "trainingruns.trimtab.dev/finalizers",
    ): "asked for by an admission plugin that this server has not",
    ("update", "rewardmodels.trimtab.dev/finalizers"): "the same",
}
"""Rights that this test's run has no use for, and what has. Beside them: `get` of what may be listed, and Kueue."""


@dataclass
class Guard:
    """RBAC as far as Roles and RoleBindings of one account go."""

    server: KubeServer
    manifests: list[Manifest]
    used: set[tuple[str, str]] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, call: Call) -> None:
        """ApiError 403 for what no role grants. Discovery is everybody's."""
        if call.user_agent == TESTER or not call.resource:
            return
        for verb in self._verbs(call):
            asked = replace(call, verb=verb)
            with self.lock:
                self.used.add((verb, call.resource))
            if not any(self._grants(rule, asked) for rule in self._rules(call.namespace)):
                with self.lock:
                    self.refused.append(f"{verb} {call.resource} {call.name} in {call.namespace or 'all'}")
                raise ApiError(403, "Forbidden", "not granted by the chart")

    def granted(self) -> set[tuple[str, str]]:
        """(verb, resource) of all that is granted anywhere."""
        return {
            (verb, _resource(group, resource))
            for role in of_kind(self.manifests, "Role")
            for rule in role["rules"]
            for verb in rule["verbs"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }

    def _verbs(self, call: Call) -> tuple[str, ...]:
        """Of an apply that makes an object both are asked."""
        # What people make is merged into, never applied: gone meanwhile, it is not made anew.
        makes = call.verb == "patch" and not call.resource.partition("/")[0].endswith("trimtab.dev")
        makes &= "/" not in call.resource
        there = self.server.store.get(call.resource, call.namespace, call.name)
        return ("patch", "create") if makes and there is None else (call.verb,)

    def _rules(self, namespace: str) -> Iterator[Manifest]:
        for role in of_kind(self.manifests, "Role"):
            if role["metadata"]["namespace"] == namespace:
                yield from role["rules"]

    @staticmethod
    def _grants(rule: Manifest, call: Call) -> bool:
        resources = {_resource(group, name) for group in rule["apiGroups"] for name in rule["resources"]}
        names = rule.get("resourceNames")
        return call.resource in resources and call.verb in rule["verbs"] and (not names or call.name in names)


def _resource(group: str, resource: str) -> str:
    """deployments.apps/scale, as the server's log writes it."""
    name, slash, below = resource.partition("/")
    return (f"{name}.{group}" if group else name) + slash + below


@pytest.fixture
def server() -> Iterator[KubeServer]:
    with KubeServer() as made:
        for crd in crds():
            made.create(crd)
        for name in (SYSTEM, RUNS):
            made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        made.controllers.start(pods=True)
        yield made


@pytest.fixture
def guard(server: KubeServer, monkeypatch: pytest.MonkeyPatch) -> Guard:
    """In front of every request."""
    made, note = Guard(server, render(VALUES)), server.calls.note

    def guarded(call: Call) -> None:
        made.check(call)
        note(call)

    monkeypatch.setattr(server.calls, "note", guarded)
    return made


@pytest.fixture
def tester(server: KubeServer) -> Api:
    """Somebody who may do anything."""
    client: ApiClient = server.client()
    client.user_agent = TESTER
    return Api(client)


@pytest.fixture
def operator(server: KubeServer, guard: Guard) -> Iterator[Operator]:
    """As the chart configures it, with a shorter lease."""
    text = named(guard.manifests, "ConfigMap", "trimtab-operator")["data"]["operator.toml"]
    config = OperatorConfig.model_validate(tomllib.loads(text))
    lease = LeaseSpec(
        name=config.lease.name,
        namespace=config.lease.namespace,
        lease_seconds=2,
        renew_seconds=1.2,
        retry_seconds=0.1,
    )
    made = Operator(
        config.model_copy(update={"lease": lease, "scaling_seconds": 1}), Api(server.client()), FakeProbe()
    )
    made.start()
    yield made
    made.stop()


def test_the_chart_grants_what_a_life_of_a_run_needs(
    server: KubeServer, guard: Guard, tester: Api, operator: Operator
) -> None:
    """Made, scaled, failed and begun again, suspended, shortened, deleted: nothing is refused, nothing is left."""
    run, model = Ref("TrainingRun", RUNS, "helpful"), Ref("RewardModel", RUNS, "hh")
    for item in (changed(RUN, roles__reward={"replicas": 2}), MODEL):
        metadata = {"name": item["metadata"]["name"], "namespace": RUNS}
        tester.apply({**item, "metadata": metadata}, TESTER)
    eventually(lambda: "helpful-learner-1" in names(server, "Job") and "hh" in names(server, "Deployment"))
    tester.merge(run, {"spec": {"roles": {"reward": {"replicas": 3}}}}, TESTER)
    eventually(lambda: replicas(server, "helpful-reward") == 3)
    server.workloads.fail_job("helpful-learner-1", RUNS)
    eventually(lambda: "helpful-learner-2" in names(server, "Job"))
    tester.merge(run, {"spec": {"suspend": True}}, TESTER)
    eventually(lambda: replicas(server, "helpful-policy") == 0)
    for ref in (run, model):
        tester.delete(ref)
    eventually(lambda: not names(server, "TrainingRun") | names(server, "RewardModel"))
    assert guard.refused == []
    listed = {resource for verb, resource in guard.granted() if verb == "list"}
    unused = {
        (verb, resource)
        for verb, resource in guard.granted() - guard.used
        if "kueue" not in resource and not (verb == "get" and resource.partition("/")[0] in listed)
    }
    assert unused == set(NOT_TRIED)


def names(server: KubeServer, kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in server.list(kind, RUNS)}


def replicas(server: KubeServer, name: str) -> int:
    found = server.get("Deployment", name, RUNS)
    return -1 if found is None else int(found["spec"]["replicas"])
