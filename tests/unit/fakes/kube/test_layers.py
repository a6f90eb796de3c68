"""What decides knows nothing of what stores and speaks: the pure parts import pure parts only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tests.fakes.kube

FOLDER = Path(tests.fakes.kube.__file__).parent
PURE = {
    "admission", "builtin_defaults", "builtin_rules", "errors", "fields", "managers", "merging", "metadata", "openapi",
    "patches", "resources", "rules", "scale", "schema", "selectors", "shapes", "tables", "workloads",
}  # fmt: skip
# Forms of data that pure parts may name.
NAMES_ONLY = {"store": {"Object", "Stored"}}


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_parts_import_pure_parts_only(module: str) -> None:
    """No store, no HTTP, no threads."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("tests.fakes.kube"):
            continue
        origin = (node.module or "").removeprefix("tests.fakes.kube").lstrip(".")
        names = {alias.name for alias in node.names}
        if not origin:
            assert names <= PURE
        elif origin in NAMES_ONLY:
            assert names <= NAMES_ONLY[origin]
        else:
            assert origin in PURE
