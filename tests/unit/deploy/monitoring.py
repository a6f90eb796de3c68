"""Dashboards, alerts, and the names that their queries may use. For tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
CHART = DEPLOY / "charts" / "trimtab"
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (CHART / "dashboards").glob("*.json")
}
ALERTS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CHART / "alerts").glob("*.yaml")
}
STATE_METRICS = yaml.safe_load((DEPLOY / "state-metrics.yaml").read_text(encoding="utf-8"))
TARGET_LABELS = {"instance", "job", "namespace", "pod"}
"""That every scraped series has."""
POD_LABELS = {"run", "role", "reward_model"}
"""That the PodMonitor of runs adds to the series of their pods."""
OVER_A_RANGE = ("rate", "increase", "delta", "deriv", "changes")
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def families(modules: Iterable[ModuleType]) -> Iterator[tuple[str, list[str], set[str]]]:
    """Of each metric of the modules: its name, the names of its samples, its labels."""
    for module in modules:
        for metric in vars(module).values():
            if hasattr(metric, "describe") and hasattr(metric, "_labelnames"):
                [family] = metric.describe()
                yield (
                    family.name,
                    [family.name + suffix for suffix in _SUFFIXES[family.type]],
                    set(metric._labelnames),
                )


def samples_of(*modules: ModuleType) -> dict[str, set[str]]:
    """Samples as queries write them, with their labels."""
    found: dict[str, set[str]] = {}
    for _, samples, labels in families(modules):
        for sample in samples:
            bucket = {"le"} if sample.endswith("_bucket") else set()
            found[sample] = labels | TARGET_LABELS | POD_LABELS | bucket
    return found


def state_samples() -> dict[str, set[str]]:
    """The same of what kube-state-metrics is told to read."""
    found: dict[str, set[str]] = {}
    for resource in STATE_METRICS["customResourceState"]["config"]["spec"]["resources"]:
        for metric in resource["metrics"]:
            gauge = metric["each"]["gauge"]
            labels = {*resource["labelsFromPath"], *gauge.get("labelsFromPath", {})}
            found[f"{resource['metricNamePrefix']}_{metric['name']}"] = labels | TARGET_LABELS
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


def rules(alerts: dict[str, Any]) -> list[dict[str, Any]]:
    """All alerts of a file."""
    return [rule for group in alerts["spec"]["groups"] for rule in group["rules"]]


def names(query: str) -> set[str]:
    """The metrics that a query asks for."""
    return set(re.findall(r"\btrimtab_[a-z0-9_]+", query))


@cache
def all_queries() -> tuple[str, ...]:
    """Of all dashboards and alerts."""
    found: list[str] = []
    for dashboard in DASHBOARDS.values():
        found += [*values(dashboard, "expr"), *values(dashboard["templating"], "definition")]
    for alerts in ALERTS.values():
        found += [rule["expr"] for rule in rules(alerts)]
    return tuple(found)
