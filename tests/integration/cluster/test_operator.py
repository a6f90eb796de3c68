"""The operator as it runs: watches, queues, two replicas and one lease, its process and its pages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes.client import ApiClient

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.operator.config import LeaseSpec, OperatorConfig
from orchestrator.cluster.operator.elector import micro_time
from orchestrator.cluster.operator.manager import Operator
from orchestrator.cluster.operator.shared import wall_clock
from orchestrator.local.ports import free_ports
from tests.fakes.kube import KubeServer
from tests.fakes.probe import FakeProbe
from tests.integration.cluster.harness import Harness, eventually
from tests.unit.orchestrator.cluster.objects import MODEL, RUN, changed

Make = Callable[..., Operator]
SHORT = {"lease_seconds": 2.0, "renew_seconds": 1.2, "retry_seconds": 0.1}


@pytest.fixture
def make(api_client: ApiClient, namespace: str) -> Iterator[Make]:
    """Operators of this test's namespace, stopped at its end."""
    made: list[Operator] = []

    def operator(identity: str = "one", **settings: object) -> Operator:
        config = OperatorConfig.model_validate(
            {
                "identity": identity,
                "namespaces": (namespace,),
                "lease": LeaseSpec(namespace=namespace, **SHORT),  # type: ignore[arg-type]
                "status_seconds": 0.1,
                **settings,
            }
        )
        made.append(Operator(config, Api(api_client), FakeProbe()))
        made[-1].start()
        return made[-1]

    yield operator
    for one in made:
        one.stop()


def lease(harness: Harness) -> dict[str, object]:
    spec: dict[str, object] = harness.get("Lease", "trimtab-operator")["spec"]
    return spec


def test_it_brings_up_what_is_submitted_and_takes_it_down(make: Make, harness: Harness) -> None:
    """From an applied run to its learner's Job, and after its deletion nothing is left."""
    make()
    harness.submit(RUN)
    harness.submit(MODEL)
    eventually(lambda: "helpful-learner-1" in harness.names("Job") and "hh" in harness.names("Deployment"))
    eventually(lambda: harness.status().get("attempt") == 1)
    harness.end_job("helpful-learner-1", "Failed")
    eventually(lambda: harness.names("Job") == {"helpful-learner-2"})
    for kind, name in (("TrainingRun", "helpful"), ("RewardModel", "hh")):
        harness.api.delete(Ref(kind, harness.namespace, name))
    eventually(lambda: not harness.versions())


def test_a_restart_writes_nothing(make: Make, harness: Harness) -> None:
    """A new process finds everything as it should be, and leaves every resourceVersion where it is."""
    first = make()
    harness.submit(RUN)
    eventually(lambda: "helpful-learner-1" in harness.names("Job"))
    before = harness.at_rest()
    first.stop()
    second = make("two")
    eventually(second.leads)
    time.sleep(0.5)
    assert harness.at_rest() == before


def test_the_second_replica_takes_over_at_once_when_the_first_leaves(make: Make, harness: Harness) -> None:
    """One leads; it gives the lease back when it is stopped, and the other does not wait for its end."""
    first = make("one")
    eventually(first.leads)
    second = make("two", lease=LeaseSpec(namespace=harness.namespace, lease_seconds=60, retry_seconds=0.1))
    eventually(lambda: not second.not_ready())
    assert not second.leads()
    assert lease(harness)["holderIdentity"] == "one"
    first.stop()
    began = time.monotonic()
    eventually(second.leads)
    assert time.monotonic() - began < 5
    harness.submit(RUN)
    eventually(lambda: "helpful-learner-1" in harness.names("Job"))


def test_who_loses_the_lease_writes_no_more(make: Make, harness: Harness) -> None:
    """Another holder in the Lease, and nothing that is submitted from then on is touched."""
    operator = make()
    eventually(operator.leads)
    taken = harness.get("Lease", "trimtab-operator")
    taken["spec"] |= {
        "holderIdentity": "other",
        "leaseDurationSeconds": 3600,
        "renewTime": micro_time(wall_clock()),
    }
    harness.api.replace(taken, "test")
    eventually(lambda: not operator.leads())
    harness.submit(RUN)
    eventually(lambda: operator.store.get(Ref("TrainingRun", harness.namespace, "helpful")) is not None)
    time.sleep(0.5)
    assert harness.names("Deployment") == set()
    assert "finalizers" not in harness.get("TrainingRun", "helpful")["metadata"]


def test_a_watch_that_is_too_old_begins_anew(make: Make, harness: Harness, faulty: KubeServer) -> None:
    """After 410 Gone the operator lists again, and misses nothing that happened meanwhile."""
    make()
    harness.submit(RUN)
    eventually(lambda: "helpful-learner-1" in harness.names("Job"))
    harness.at_rest()
    lists = faulty.calls.count("list", "trainingruns.trimtab.dev")
    faulty.calls.fail(1, 410, verb="watch", resource="trainingruns.trimtab.dev")
    faulty.drop_watches()
    harness.change({"roles": {"policy": {"replicas": 2}}})
    eventually(lambda: harness.replicas("helpful-policy") == 2)
    assert faulty.calls.count("list", "trainingruns.trimtab.dev") == lists + 1


def test_a_dropped_watch_goes_on_from_where_it_was(make: Make, harness: Harness, faulty: KubeServer) -> None:
    """A lost connection costs no list."""
    make()
    harness.submit(RUN)
    eventually(lambda: "helpful-learner-1" in harness.names("Job"))
    harness.at_rest()
    lists = faulty.calls.count("list", "statefulsets.apps")
    faulty.drop_watches()
    harness.change({"roles": {"policy": {"replicas": 2}}})
    eventually(lambda: harness.replicas("helpful-policy") == 2)
    assert faulty.calls.count("list", "statefulsets.apps") == lists


def test_a_server_that_refuses_for_a_while_is_waited_out(
    make: Make, harness: Harness, faulty: KubeServer
) -> None:
    """Writes that fail are tried again, with a back-off; in the end all is there, once."""
    operator = make()
    eventually(operator.leads)
    faulty.calls.fail(3, 503, verb="write", resource="deployments.apps")
    harness.submit(RUN)
    eventually(lambda: "helpful-learner-1" in harness.names("Job"))
    assert len(harness.names("Deployment")) == 3


def test_the_process_answers_probes_and_ends_in_time(kubeconfig: Path, harness: Harness) -> None:
    """/readyz once its lists are there, /metrics with the leader, and after SIGTERM exit 0 with the lease free."""
    health, metrics = free_ports(2)
    settings = {
        "lease.namespace": harness.namespace,
        "namespaces": f'["{harness.namespace}"]',
        "host": "127.0.0.1",
        "health_port": health,
        "metrics_port": metrics,
    }
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "operator", "--kubeconfig", str(kubeconfig), *flags],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        eventually(lambda: page(health, "/readyz") == "ok\n")
        eventually(lambda: "trimtab_operator_leader 1.0" in page(metrics, "/metrics"))
        assert page(health, "/healthz") == "ok\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not lease(harness).get("holderIdentity")
    finally:
        process.kill()
        process.wait()


def page(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def test_what_lost_its_label_is_seen_again_as_it_was(make: Make, harness: Harness) -> None:
    """The watch tells its end; the label is put back, the replicas stay, and what is changed later is known."""
    operator = make()
    harness.submit(changed(RUN, roles__policy__scaling__mode="External"))
    ref = Ref("Deployment", harness.namespace, "helpful-policy")

    def known() -> int | None:
        there = operator.store.get(ref)
        return None if there is None else there["spec"]["replicas"]

    eventually(lambda: known() == 1)
    harness.kubectl_scale(ref.name, 5)
    eventually(lambda: known() == 5)
    label = "app.kubernetes.io/part-of"
    harness.api.merge(ref, {"metadata": {"labels": {label: None}}}, "kubectl")
    eventually(lambda: harness.get(*ref[::2])["metadata"]["labels"].get(label) == "trimtab")
    eventually(lambda: known() == 5)
    harness.kubectl_scale(ref.name, 4)
    eventually(lambda: known() == 4)
    assert harness.replicas(ref.name) == 4
