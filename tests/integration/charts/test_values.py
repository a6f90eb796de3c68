"""values.yaml, its schema and the table in the README say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.tools.values_table import rows, with_table
from tests.integration.charts.matrix import MATRIX
from tests.integration.charts.rendering import CHART, HELMS, Values, helm, refused

TEXT = (CHART / "values.yaml").read_text(encoding="utf-8")
VALUES: Values = yaml.safe_load(TEXT)
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
ROWS = list(rows(TEXT))


def leaves(node: Any, documented: set[str], prefix: str = "") -> Iterator[str]:
    """Paths of all values; a documented map counts as one."""
    for name, value in node.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and path not in documented:
            yield from leaves(value, documented, f"{path}.")
        else:
            yield path


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema behind a reference."""
    reference = schema.get("$ref")
    return SCHEMA["definitions"][reference.rpartition("/")[2]] if reference else schema


def paths_of(schema: dict[str, Any], documented: set[str], prefix: str = "") -> Iterator[str]:
    """Paths that the schema knows, as deep as the table goes."""
    for name, value in resolved(schema)["properties"].items():
        path = f"{prefix}{name}"
        if "properties" in resolved(value) and path not in documented:
            yield from paths_of(value, documented, f"{path}.")
        else:
            yield path


def test_every_value_is_explained() -> None:
    """No key lacks its line; no line is about a key that is not there."""
    documented = [path for path, _, _ in ROWS]
    assert sorted(leaves(VALUES, set(documented))) == sorted(documented)
    assert all(meaning.endswith(".") for _, _, meaning in ROWS)


def test_the_table_is_that_of_the_values() -> None:
    """`make chart-docs` would change nothing."""
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, TEXT) == readme


def test_the_schema_knows_every_value_and_no_other() -> None:
    """But `global`, which a chart above this one may set."""
    documented = {path for path, _, _ in ROWS}
    assert set(paths_of(SCHEMA, documented)) - {"global"} == documented


def test_the_schema_is_one_and_takes_the_defaults() -> None:
    """By its own draft; every object in it is closed."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(VALUES)
    assert json.dumps(SCHEMA).count('"properties"') == json.dumps(SCHEMA).count(
        '"additionalProperties": false'
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"operator": {"replica": 3}}, "replica"),
        ({"operator": {"replicas": 0}}, "replicas"),
        ({"operator": {"logLevel": "loud"}}, "logLevel"),
        ({"operator": {"namespaces": ["Team A"]}}, "namespaces"),
        ({"userId": 0}, "userId"),
        ({"images": {"policy": ""}}, "policy"),
        ({"images": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"queue": {"externalUrl": "http://redis:6379"}}, "externalUrl"),
        ({"queue": {"valkey": {"storage": "much"}}}, "storage"),
        ({"preference": {"database": {"port": 0}}}, "port"),
        ({"networkPolicies": {"apiServer": {"ports": []}}}, "ports"),
        ({"networkPolicies": {"apiServer": {"cidrs": ["somewhere"]}}}, "cidrs"),
        ({"monitoring": {"interval": "15"}}, "interval"),
        ({"certManager": {"enabled": True, "certificates": [{"dnsNames": ["a"]}]}}, "certificates"),
    ],
)
def test_wrong_values_are_refused_by_name(values: Values, told: str) -> None:
    """Helm says which value is wrong, before anything is rendered."""
    assert told in refused(values)


@pytest.mark.parametrize("major", HELMS)
@pytest.mark.parametrize("name", MATRIX)
def test_lint_takes_every_combination(name: str, major: str) -> None:
    """`helm lint --strict` with each set of values of the matrix."""
    ran = helm("lint", "--strict", "--quiet", str(CHART), major=major, values=MATRIX[name])
    assert ran.returncode == 0, ran.stdout + ran.stderr
