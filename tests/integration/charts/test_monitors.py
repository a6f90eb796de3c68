"""What is scraped, alarmed and drawn: monitors find the pods, rules and dashboards are the files."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from orchestrator.cluster.names import RewardModelNames, RunNames
from tests.integration.charts.examples import OBJECTS, manifests_of
from tests.integration.charts.rendering import Manifest, named, of_kind, render
from tests.unit.deploy.monitoring import ALERTS, DASHBOARDS, POD_LABELS
from tests.unit.orchestrator.cluster.reach import fits

ON = {
    "monitoring": {
        "podMonitors": True,
        "prometheusRules": True,
        "dashboards": True,
        "labels": {"release": "prometheus"},
        "dashboardAnnotations": {"grafana_folder": "Trimtab"},
    }
}
WITHOUT_METRICS = {"redis"}
"""Services of a run that are not ours."""


def pods_of(manifests: list[Manifest]) -> list[tuple[dict[str, str], set[str]]]:
    """Labels, and names of ports, of everything that makes pods."""
    return [
        (
            template["metadata"]["labels"],
            {
                port.get("name", "")
                for container in template["spec"]["containers"]
                for port in container.get("ports", ())
            },
        )
        for item in of_kind(manifests, "Deployment", "StatefulSet", "Job")
        for template in [item["spec"]["template"]]
    ]


def test_nothing_of_it_comes_unasked() -> None:
    """Without the Prometheus operator its kinds would be refused."""
    assert not [item for item in render() if "monitoring.coreos.com" in item["apiVersion"]]


def test_the_operators_pods_are_scraped() -> None:
    """By the label of the release and the port's name."""
    manifests = render(ON)
    monitor = named(manifests, "PodMonitor", "trimtab")["spec"]
    [endpoint] = monitor["podMetricsEndpoints"]
    [(labels, ports)] = pods_of(manifests)
    assert fits(monitor["selector"], labels)
    assert endpoint["port"] in ports


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item.metadata.namespace}/{item.metadata.name}")
def test_pods_of_runs_and_models_are_scraped(item: Any) -> None:
    """Each service's pods are found and have the port; the queue server, which has none, does no harm."""
    monitor = named(render(ON), "PodMonitor", "trimtab-runs")["spec"]
    [endpoint] = monitor["podMetricsEndpoints"]
    for labels, ports in pods_of(manifests_of(item)):
        assert fits(monitor["selector"], labels)
        service = labels.get("trimtab.dev/service", "")
        without = service in WITHOUT_METRICS or labels.get("trimtab.dev/role") == "job"
        assert (endpoint["port"] in ports) != without, service


def test_series_carry_run_role_and_model() -> None:
    """Relabelling names labels that the pods have, as Prometheus writes them."""
    monitor = named(render(ON), "PodMonitor", "trimtab-runs")["spec"]
    known = {*RunNames("a", "b").labels("policy"), *RewardModelNames("a", "b").labels}
    written = {f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9_]', '_', label)}" for label in known}
    relabelings = monitor["podMetricsEndpoints"][0]["relabelings"]
    assert {relabeling["targetLabel"] for relabeling in relabelings} == POD_LABELS
    assert {source for relabeling in relabelings for source in relabeling["sourceLabels"]} <= written


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, {"matchNames": ["trimtab-system"]}), ({"operator": {"allNamespaces": True}}, {"any": True})],
    ids=["namespaced", "all"],
)
def test_monitors_look_where_runs_are(values: dict[str, Any], expected: dict[str, Any]) -> None:
    """In the operator's namespaces, or in all."""
    assert named(render(ON | values), "PodMonitor", "trimtab-runs")["spec"]["namespaceSelector"] == expected


def test_rules_are_the_files_with_the_labels_that_prometheus_asks_for() -> None:
    """Nothing of an alert is touched by Helm, its braces included."""
    rendered = of_kind(render(ON), "PrometheusRule")
    assert {item["metadata"]["name"].removeprefix("trimtab-") for item in rendered} == set(ALERTS)
    for item in rendered:
        assert item["spec"] == ALERTS[item["metadata"]["name"].removeprefix("trimtab-")]["spec"]
        assert item["metadata"]["labels"]["release"] == "prometheus"


def test_dashboards_are_the_files_where_grafana_looks() -> None:
    """Each is a ConfigMap with the sidecar's label and the folder."""
    found = [item for item in of_kind(render(ON), "ConfigMap") if "-dashboard-" in item["metadata"]["name"]]
    assert len(found) == len(DASHBOARDS)
    for item in found:
        [(file, text)] = item["data"].items()
        assert json.loads(text) == DASHBOARDS[file.removeprefix("trimtab-").removesuffix(".json")]
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"] == {"grafana_folder": "Trimtab"}
