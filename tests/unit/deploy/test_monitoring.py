"""Dashboards and alerts are well formed and name only metrics and labels that there are."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import pytest

from orchestrator.cluster.conditions import RoleFacts, RunFacts, run_conditions
from orchestrator.cluster.control.attempts import Count
from orchestrator.cluster.control.course import Course
from orchestrator.cluster.control.insight import Insight, LearnerFigures, RoleInsight
from orchestrator.cluster.control.status import RunPicture, run_status
from orchestrator.cluster.crds import crds
from orchestrator.cluster.kinds.status import CheckpointStatus, RolloutStatus
from orchestrator.cluster.operator import metrics as operator_metrics
from services.common import http_guard, telemetry
from services.common.access import opening
from services.reward import drift_monitor, metrics, request_log, shadow
from tests.unit.deploy.monitoring import (
    ALERTS,
    DASHBOARDS,
    OVER_A_RANGE,
    STATE_METRICS,
    all_queries,
    families,
    names,
    rules,
    samples_of,
    state_samples,
    values,
)
from tests.unit.orchestrator.cluster.objects import run

REWARD = (drift_monitor, metrics, request_log, shadow)
KNOWN = samples_of(telemetry, http_guard, opening, operator_metrics, *REWARD) | state_samples()


def test_every_metric_that_is_asked_for_exists() -> None:
    """Queries name samples that a service's registry, the operator's, or kube-state-metrics can give."""
    asked = {name for query in all_queries() for name in names(query)}
    assert asked - KNOWN.keys() == set()
    assert len(asked) > 60


@pytest.mark.parametrize("query", all_queries())
def test_labels_exist_on_their_metrics(query: str) -> None:
    """What a query selects or groups by is a label of each of its metrics."""
    for name, selectors in re.findall(r"\b(trimtab_[a-z0-9_]+)\{([^}]*)\}", query):
        assert {part.group() for part in re.finditer(r'\w+(?=(=|!=|=~|!~)")', selectors)} <= KNOWN[name]
    labels = {
        label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in group.split(",")
    }
    for name in names(query):
        assert labels <= KNOWN[name], name


@pytest.mark.parametrize("query", all_queries())
def test_brackets_of_queries_are_in_pairs(query: str) -> None:
    """Nothing is left open, and ranges are used with functions of ranges."""
    for opening_bracket, closing in ("()", "{}", "[]"):
        assert query.count(opening_bracket) == query.count(closing)
    assert query.count("[") == len(re.findall(rf"\b(?:{'|'.join(OVER_A_RANGE)})\(", query))


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_a_dashboard_is_one_that_grafana_takes(dashboard: dict[str, Any]) -> None:
    """Ids are unique, panels lie within 24 columns and do not overlap, each has a query and a source."""
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["uid"] and dashboard["title"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (column, line)
            for column in range(place["x"], place["x"] + place["w"])
            for line in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"] and panel["description"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references)


def test_dashboards_are_told_apart() -> None:
    """No two have the same uid, or the later would replace the earlier."""
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) >= 2


def test_alerts_are_complete() -> None:
    """Each has a name of its own, a severity and a line for a person."""
    found = [rule for alerts in ALERTS.values() for rule in rules(alerts)]
    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]


@pytest.mark.parametrize("topic", ["QueueFull", "Errors", "Drift", "Slow", "Swapped"])
def test_reward_services_alarm_of_what_operators_asked_for(topic: str) -> None:
    """A full queue, errors, drift, slowness, a swap."""
    assert any(topic in rule["alert"] for rule in rules(ALERTS["reward"]))


@pytest.mark.parametrize("topic", ["OwnErrors", "SwapFails"])
def test_reward_services_alarm_of_http_as_of_grpc(topic: str) -> None:
    """Trainers and operators that speak HTTP alone are heard, too."""
    asked = {
        name for rule in rules(ALERTS["reward"]) if topic in rule["alert"] for name in names(rule["expr"])
    }
    assert asked == {"trimtab_grpc_calls_total", "trimtab_http_requests_total"}


@pytest.mark.parametrize(
    ("dashboard", "modules"), [("reward", REWARD), ("runs", (operator_metrics,))], ids=["reward", "operator"]
)
def test_what_is_measured_is_shown(dashboard: str, modules: Any) -> None:
    """No metric of the module is missing from its dashboard, but for how much the operator has in its cache."""
    shown = {name for query in values(DASHBOARDS[dashboard], "expr") for name in names(query)}
    left_out = {"trimtab_operator_cached_objects", "trimtab_operator_runs", "trimtab_operator_lists"}
    for family, samples, _ in families(modules):
        assert shown & set(samples) or family in left_out, family


@pytest.mark.parametrize(
    "resource",
    STATE_METRICS["customResourceState"]["config"]["spec"]["resources"],
    ids=lambda resource: resource["groupVersionKind"]["kind"],
)
def test_kube_state_metrics_reads_fields_that_there_are(resource: dict[str, Any]) -> None:
    """Every path is one of the kind's schema, and ends at a number, a truth or a time."""
    told = resource["groupVersionKind"]
    [crd] = [each for each in crds() if each["spec"]["names"]["kind"] == told["kind"]]
    [version] = [each for each in crd["spec"]["versions"] if each["name"] == told["version"]]
    schema = version["schema"]["openAPIV3Schema"]
    for metric in resource["metrics"]:
        gauge = metric["each"]["gauge"]
        node = _at(schema, gauge["path"])
        if "valueFrom" in gauge:
            item = node["items"]
            for path in gauge["labelsFromPath"].values():
                assert _at(item, path)["type"] == "string"
            node = _at(item, gauge["valueFrom"])
        is_time_or_truth = node.get("format") == "date-time" or node.get("enum") == [
            "True",
            "False",
            "Unknown",
        ]
        assert node["type"] in ("integer", "number", "boolean") or is_time_or_truth, metric["name"]


def test_what_kube_state_metrics_reads_of_a_run_is_written() -> None:
    """Of a run that trains the operator writes every field that is read, so no alert waits for what never comes."""
    figures = LearnerFigures(
        reward=0.5,
        kl=0.1,
        idle_share=0.2,
        rollouts=RolloutStatus(),
        last_checkpoint=CheckpointStatus(step=1, path="/storage/step-1"),
    )
    now = datetime(2026, 1, 2, tzinfo=UTC)
    picture = RunPicture(
        course=Course(stage="rl"),
        count=Count(attempt=1),
        roles=(RoleFacts(name="policy", desired=1),),
        insight=Insight(
            learner=figures, roles={"policy": RoleInsight(backlog_groups=0, idle_share=0.1, wanted=1)}
        ),
        conditions=run_conditions(RunFacts(generation=1), (), now),
        now=now,
    )
    item = {"spec": run().spec.model_dump(mode="json", by_alias=True), "status": run_status(run(), picture)}
    resources = STATE_METRICS["customResourceState"]["config"]["spec"]["resources"]
    [resource] = [one for one in resources if one["groupVersionKind"]["kind"] == "TrainingRun"]
    for metric in resource["metrics"]:
        gauge = metric["each"]["gauge"]
        found = reduce(lambda node, part: node[part], gauge["path"], item)
        for node in found if "valueFrom" in gauge else ():
            assert reduce(lambda value, part: value[part], gauge["valueFrom"], node) is not None, metric[
                "name"
            ]
        assert found is not None and found != [], metric["name"]


def test_a_runs_reward_model_is_not_taken_for_another_runs() -> None:
    """Every run calls its own `reward`: what is summed over replicas is of one run or one RewardModel."""
    over_replicas = [
        group.split(", ")
        for rule in rules(ALERTS["reward"])
        for group in re.findall(r"by \(([^)]*)\)", rule["expr"])
        if "model" in group.split(", ") and "instance" not in group
    ]
    assert len(over_replicas) >= 6
    for labels in over_replicas:
        assert {"job", "namespace", "run", "reward_model"} <= set(labels)


def test_kube_state_metrics_may_read_what_it_is_told_to() -> None:
    """Its rights name the kinds of its configuration, to list and watch and no more."""
    [rule] = STATE_METRICS["rbac"]["extraRules"]
    plurals = {crd["spec"]["names"]["plural"] for crd in crds()}
    assert (set(rule["resources"]), rule["verbs"]) == (plurals, ["list", "watch"])


def _at(schema: dict[str, Any], path: list[str]) -> dict[str, Any]:
    for part in path:
        schema = schema["properties"][part]
    return schema
