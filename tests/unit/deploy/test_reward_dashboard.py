"""Dashboard and alerts of the reward service name only metrics that the code has, and are well formed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from services.common import telemetry
from services.reward import drift_monitor, metrics, request_log, shadow

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = json.loads((DEPLOY / "dashboards" / "reward.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "alerts" / "reward.yaml").read_text(encoding="utf-8"))
# What the modules that are imported here have registered.
MODULES = (telemetry, drift_monitor, metrics, request_log, shadow)
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}


def samples() -> dict[str, set[str]]:
    """Names as a query writes them, with their labels."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for metric in vars(module).values():
            if hasattr(metric, "describe") and hasattr(metric, "_labelnames"):
                [family] = metric.describe()
                for suffix in _SUFFIXES[family.type]:
                    found[family.name + suffix] = set(metric._labelnames) | {"instance", "job"}
                    if suffix == "_bucket":
                        found[family.name + suffix] |= {"le"}
    return found


def values(node: Any, key: str) -> Iterator[str]:
    """Every string under `key`, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from values(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from values(value, key)


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["spec"]["groups"] for rule in group["rules"]]


QUERIES = [
    *values(DASHBOARD, "expr"),
    *values(DASHBOARD["templating"], "definition"),
    *(rule["expr"] for rule in rules()),
]


def names(query: str) -> set[str]:
    return set(re.findall(r"\btrimtab_[a-z0-9_]+", query))


def test_every_metric_that_is_asked_for_exists() -> None:
    """Queries of dashboard and alerts name samples that the code's registry can give."""
    known = samples()
    asked = {name for query in QUERIES for name in names(query)}
    assert asked - known.keys() == set()
    assert len(asked) > 25


@pytest.mark.parametrize("query", QUERIES)
def test_labels_exist_on_their_metrics(query: str) -> None:
    """What a query selects or groups by is a label of each of its metrics."""
    known = samples()
    for name, selectors in re.findall(r"\b(trimtab_[a-z0-9_]+)\{([^}]*)\}", query):
        assert {part.group() for part in re.finditer(r'\w+(?=(=|!=|=~|!~)")', selectors)} <= known[name]
    labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
    for name in names(query):
        assert labels <= known[name], name


@pytest.mark.parametrize("query", QUERIES)
def test_brackets_of_queries_are_in_pairs(query: str) -> None:
    """Nothing is left open, and ranges are used with functions of ranges."""
    for opening, closing in ("()", "{}", "[]"):
        assert query.count(opening) == query.count(closing)
    assert len(re.findall(r"\[", query)) == len(re.findall(r"\b(?:rate|increase)\(", query))


def test_all_metrics_of_scoring_are_shown() -> None:
    """No metric of the reward service is missing from its dashboard."""
    shown = {name for query in values(DASHBOARD, "expr") for name in names(query)}
    for module in (drift_monitor, metrics, request_log, shadow):
        for metric in vars(module).values():
            if hasattr(metric, "describe") and hasattr(metric, "_labelnames"):
                [family] = metric.describe()
                assert any(family.name + suffix in shown for suffix in _SUFFIXES[family.type]), family.name


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Ids are unique, panels lie within 24 columns and do not overlap, each has a query and a source."""
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["uid"] and DASHBOARD["title"]
    panels = DASHBOARD["panels"]
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


def test_alerts_are_complete() -> None:
    """Each has a name of its own, a severity and a line for a person; the five that operators asked for are there."""
    found = [rule["alert"] for rule in rules()]
    assert len(set(found)) == len(found)
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
    for topic in ("QueueFull", "Errors", "Drift", "Slow", "Swapped"):
        assert any(topic in name for name in found)


def test_names_in_the_registry_end_in_their_unit() -> None:
    """Histograms and gauges of time are in seconds; nothing counts in milliseconds."""
    for family in REGISTRY.collect():
        if family.name.startswith("trimtab_reward"):
            assert not family.name.endswith(("_ms", "_milliseconds", "_time", "_latency"))
