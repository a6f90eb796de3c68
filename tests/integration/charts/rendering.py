"""Charts rendered by helm itself. For tests; the binaries come by `make helm`, which `make test` sees to."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.orchestrator.cluster import versions

ROOT = Path(__file__).parents[3]
CHARTS = ROOT / "deploy" / "charts"
CHART = CHARTS / "trimtab"
HELMS = ("4", "3")
"""Major versions; the first is the one that most tests use."""
FOREIGN = ("cert-manager.io", "monitoring.coreos.com", "keda.sh", "karpenter.sh", "karpenter.k8s.aws")
"""Groups of other projects, whose schemas Kubernetes does not have."""

Manifest = dict[str, Any]
Values = dict[str, Any]


def binary(name: str, major: str = HELMS[0]) -> Path:
    """helm or kubectl. A missing one is a failure, never a reason to pass by."""
    path = ROOT / ".venv-helm" / major / name
    if not path.exists():
        pytest.fail(f"{path.relative_to(ROOT)} is missing: `make helm` fetches it")
    return path


def helm(
    *arguments: str, major: str = HELMS[0], values: Values | None = None
) -> subprocess.CompletedProcess[str]:
    """One call of helm; `values` go in by stdin."""
    given = ["--values", "-"] if values else []
    return subprocess.run(
        [binary("helm", major), *arguments, *given],
        input=json.dumps(values) if values else None,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


def render(values: Values | None = None, *, major: str = HELMS[0], kube: str = "1.37.0") -> list[Manifest]:
    """Manifests of the chart as release `trimtab` in `trimtab-system`."""
    return list(_rendered(json.dumps(values or {}, sort_keys=True), major, kube))


def refused(values: Values) -> str:
    """What helm says of values that it does not take."""
    ran = helm("template", "trimtab", str(CHART), values=values)
    assert ran.returncode != 0, "these values were taken"
    return ran.stderr


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Those of the kinds."""
    return [item for item in manifests if item["kind"] in kinds]


def named(manifests: list[Manifest], kind: str, name: str, namespace: str = "") -> Manifest:
    """The one of this kind and name, and namespace where several have it."""
    [found] = [
        item
        for item in of_kind(manifests, kind)
        if item["metadata"]["name"] == name and namespace in ("", item["metadata"].get("namespace"))
    ]
    return found


def check(manifest: Manifest, kube: str) -> None:
    """Kubernetes' own schema of that release holds; of another project's kind, that it is whole."""
    assert manifest["metadata"]["name"]
    if manifest["apiVersion"].partition("/")[0] in FOREIGN:
        assert manifest["spec"]
        return
    versions.check(manifest, kube)


@cache
def _rendered(values: str, major: str, kube: str) -> tuple[Manifest, ...]:
    arguments = ("template", "trimtab", str(CHART), "--namespace", "trimtab-system", "--kube-version", kube)
    ran = helm(*arguments, major=major, values=json.loads(values))
    assert ran.returncode == 0, ran.stderr
    return tuple(document for document in yaml.safe_load_all(ran.stdout) if document)
