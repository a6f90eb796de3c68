"""Who reaches whom once the chart and a run are there together: exactly what the picture shows."""

from __future__ import annotations

import re
from functools import cache
from urllib.parse import urlsplit

import pytest
import yaml

from orchestrator.cluster.kinds import TrainingRun
from orchestrator.cluster.names import RunNames
from orchestrator.cluster.render import RenderOptions, RunState, render_run
from tests.integration.charts.examples import EXAMPLES, documents, values_of
from tests.integration.charts.matrix import EVERYTHING
from tests.integration.charts.rendering import CHART, Manifest, named, of_kind, render
from tests.unit.orchestrator.cluster.reach import Address, Pod, may_reach

SYSTEM = "trimtab-system"
API_SERVER = Address("10.96.0.1")
MONITORING, STRANGER = Pod("monitoring"), Pod("elsewhere")


@cache
def run_of_keda() -> TrainingRun:
    [document] = documents(EXAMPLES / "keda" / "run.yaml")
    return TrainingRun.model_validate(document)


@cache
def of_chart() -> list[Manifest]:
    """What the chart makes beside a run that uses the shared queue server."""
    values = {
        **values_of("keda"),
        "preference": {
            "enabled": True,
            "database": {"existingSecret": "ratings", "cidrs": ["10.1.0.0/16"]},
            "allowedNamespaces": ["people"],
            "pages": {"enabled": True, "allowedNamespaces": ["ingress"]},
        },
    }
    return render(values)


@cache
def world() -> tuple[list[Manifest], dict[str, Pod]]:
    """All policies, and the pods: the chart's by part, the run's by service."""
    manifests, run = of_chart(), run_of_keda()
    labels = named(manifests, "Deployment", "trimtab-operator")["spec"]["template"]["metadata"]["labels"]
    options = RenderOptions(operator_namespace=SYSTEM, operator_labels=labels)
    of_run = render_run(run, options, RunState(attempt=1))
    pods = {
        item["metadata"]["name"].removeprefix("trimtab-"): Pod(
            SYSTEM, item["spec"]["template"]["metadata"]["labels"]
        )
        for item in of_kind(manifests, "Deployment", "StatefulSet")
    }
    pods["test"] = Pod(SYSTEM, named(manifests, "Pod", "trimtab-test")["metadata"]["labels"])
    names = RunNames.of(run)
    for service in ("policy", "reference", "reward", "learner"):
        pods[service] = Pod(names.namespace, names.labels(service))
    return of_kind([*manifests, *of_run], "NetworkPolicy"), pods


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        *(
            ("operator", role, port)
            for role, port in (("policy", 50051), ("reference", 50152), ("reward", 50253))
        ),
        ("operator", "learner", 50054),
        ("operator", "valkey", 6379),
        *((role, "valkey", 6379) for role in ("policy", "reference", "reward", "learner")),
        ("test", "operator", 50156),
        ("test", "valkey", 6379),
        ("test", "preference", 50155),
    ],
)
def test_what_the_picture_shows_is_open(source: str, target: str, port: int) -> None:
    """Both ends let it pass."""
    policies, pods = world()
    assert may_reach(policies, pods[source], pods[target], port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("policy", "operator", 50256),
        ("policy", "operator", 50156),
        ("valkey", "operator", 50156),
        ("valkey", "preference", 50055),
        ("preference", "valkey", 6379),
        ("preference", "operator", 50256),
        ("test", "operator", 50256),
        ("test", "preference", 50055),
        ("operator", "preference", 50055),
        ("preference", "policy", 50051),
    ],
)
def test_what_it_does_not_show_is_shut(source: str, target: str, port: int) -> None:
    """One end at least holds it up."""
    policies, pods = world()
    assert not may_reach(policies, pods[source], pods[target], port)


def test_the_test_pod_reaches_whatever_it_asks() -> None:
    """Each URL of `helm test` is open to it; or a release that is well would never pass."""
    policies, pods = world()
    [container] = named(of_chart(), "Pod", "trimtab-test")["spec"]["containers"]
    places = [urlsplit(url) for url in container["args"][1:]]
    assert {place.hostname for place in places} > {"trimtab-preference", "trimtab-preference-pages"}
    for place in places:
        part = (place.hostname or "").removeprefix("trimtab-").removesuffix("-pages")
        assert may_reach(policies, pods["test"], pods[part], place.port or 0), place.geturl()


def test_only_the_operator_reaches_the_api_server() -> None:
    """No other pod of the chart has a way to it."""
    policies, pods = world()
    ours = {name: pod for name, pod in pods.items() if pod.namespace == SYSTEM}
    assert {name for name, pod in ours.items() if may_reach(policies, pod, API_SERVER, 443)} == {"operator"}


def test_metrics_are_for_the_monitoring_namespace() -> None:
    """Who scrapes gets the metrics ports and nothing else; a stranger nothing at all."""
    policies, pods = world()
    for name, port in (("operator", 50256), ("preference", 50255), ("policy", 50251), ("learner", 50254)):
        assert may_reach(policies, MONITORING, pods[name], port)
        assert not may_reach(policies, STRANGER, pods[name], port)
    for name, port in (("operator", 50156), ("preference", 50055), ("valkey", 6379)):
        assert not may_reach(policies, MONITORING, pods[name], port)


def test_namespaces_that_values_name_are_let_in() -> None:
    """KEDA asks the queue server, people's programs the preference service; not the other way round."""
    policies, pods = world()
    assert may_reach(policies, Pod("keda"), pods["valkey"], 6379)
    assert not may_reach(policies, Pod("keda"), pods["preference"], 50055)
    assert may_reach(policies, Pod("people"), pods["preference"], 50055)
    assert not may_reach(policies, Pod("people"), pods["valkey"], 6379)


def test_the_pages_are_for_the_ingress_alone() -> None:
    """Its namespace reaches the pages and nothing else of the preference service; others do not reach them."""
    policies, pods = world()
    assert may_reach(policies, Pod("ingress"), pods["preference"], 8055)
    assert not may_reach(policies, Pod("ingress"), pods["preference"], 50055)
    for other in (Pod("people"), STRANGER, MONITORING):
        assert not may_reach(policies, other, pods["preference"], 8055)


def test_the_database_is_where_the_values_say() -> None:
    """The preference service reaches its database's addresses on its port, and no others."""
    policies, pods = world()
    assert may_reach(policies, pods["preference"], Address("10.1.2.3"), 5432)
    assert not may_reach(policies, pods["preference"], Address("10.2.2.3"), 5432)
    assert not may_reach(policies, pods["preference"], Address("10.1.2.3"), 443)


def test_the_api_servers_address_can_be_told() -> None:
    """With CIDRs the operator reaches these alone on its ports."""
    manifests = render(EVERYTHING)
    labels = named(manifests, "Deployment", "rlhf-operator")["spec"]["template"]["metadata"]["labels"]
    operator, policies = Pod(SYSTEM, labels), of_kind(manifests, "NetworkPolicy")
    assert may_reach(policies, operator, Address("10.0.0.1"), 443)
    assert not may_reach(policies, operator, Address("10.0.0.2"), 443)


def test_a_queue_server_elsewhere_is_reached_on_its_port() -> None:
    """The port comes from the URL."""
    manifests = render({"queue": {"externalUrl": "rediss://u:p@redis.example.com:6380/0"}})
    labels = named(manifests, "Deployment", "trimtab-operator")["spec"]["template"]["metadata"]["labels"]
    policies = of_kind(manifests, "NetworkPolicy")
    assert may_reach(policies, Pod(SYSTEM, labels), Address("203.0.113.9"), 6380)
    assert not may_reach(policies, Pod(SYSTEM, labels), Address("203.0.113.9"), 6379)


def test_a_queue_server_that_runs_name_by_themselves_is_reached_by_the_rule_of_the_readme() -> None:
    """The chart knows nothing of it: without that rule the operator is shut out."""
    [rule] = re.findall(r"`(networkPolicies: .*?)`", (CHART / "README.md").read_text(encoding="utf-8"))
    for values, open_ in ((yaml.safe_load(rule), True), ({}, False)):
        manifests = render(values)
        labels = named(manifests, "Deployment", "trimtab-operator")["spec"]["template"]["metadata"]["labels"]
        policies = of_kind(manifests, "NetworkPolicy")
        assert may_reach(policies, Pod(SYSTEM, labels), Address("203.0.113.9"), 6379) is open_
