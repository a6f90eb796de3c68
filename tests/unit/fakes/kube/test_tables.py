"""Tables of `kubectl get`."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.crds import crds
from tests.fakes.kube.resources import custom_resources
from tests.fakes.kube.tables import age, at_json_path, table

OBJECT: dict[str, Any] = {
    "metadata": {
        "name": "helpful",
        "creationTimestamp": "2025-01-01T00:00:00Z",
        "annotations": {"a.b/c": "d"},
    },
    "status": {"step": 4, "conditions": [{"type": "Available", "status": "True"}]},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (".status.step", 4),
        ('.status.conditions[?(@.type=="Available")].status', "True"),
        (".status.conditions[?(@.type == 'Ready')].status", None),
        (r".metadata.annotations.a\.b/c", "d"),
        (".spec.none.below", None),
    ],
)
def test_paths(path: str, value: Any) -> None:
    """Fields, escaped dots, elements by a field."""
    assert at_json_path(OBJECT, path) == value


@pytest.mark.parametrize(
    ("now", "text"),
    [
        ("2025-01-01T00:01:59Z", "119s"),
        ("2025-01-01T00:03:10Z", "3m10s"),
        ("2025-01-01T00:20:10Z", "20m"),
        ("2025-01-01T05:00:00Z", "5h"),
        ("2025-01-05T00:00:00Z", "4d"),
        ("2024-12-31T00:00:00Z", "0s"),
    ],
)
def test_ages(now: str, text: str) -> None:
    """The longer, the coarser."""
    assert age("2025-01-01T00:00:00Z", now) == text


def test_a_kind_is_shown_by_its_columns() -> None:
    """The name, then what the CRD says."""
    (run,) = (each for crd in crds() for each in custom_resources(crd) if each.kind == "TrainingRun")
    made = table(run, [OBJECT], {}, "2025-01-01T00:00:05Z")
    names = [column["name"] for column in made["columnDefinitions"]]
    row = dict(zip(names, made["rows"][0]["cells"], strict=True))
    assert (row["Name"], row["Available"], row["Step"], row["Age"]) == ("helpful", "True", 4, "5s")
