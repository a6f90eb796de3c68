"""Request paths."""

from __future__ import annotations

import pytest

from tests.fakes.kube.catalog import Catalog
from tests.fakes.kube.paths import place


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/api/v1/namespaces", ("namespaces", "", "", "")),
        ("/api/v1/namespaces/n", ("namespaces", "", "n", "")),
        ("/api/v1/namespaces/n/status", ("namespaces", "", "n", "status")),
        ("/api/v1/pods", ("pods", None, "", "")),
        ("/api/v1/namespaces/n/pods", ("pods", "n", "", "")),
        ("/api/v1/namespaces/n/pods/p", ("pods", "n", "p", "")),
        ("/api/v1/namespaces/n/pods/p/status", ("pods", "n", "p", "status")),
        ("/apis/apps/v1/namespaces/n/deployments/d/scale", ("deployments.apps", "n", "d", "scale")),
        ("/api/v1/nodes/n", ("nodes", "", "n", "")),
        ("/api/v1/pods/p", None),
        ("/api/v1/namespaces/n/configmaps/c/status", None),
        ("/apis/apps/v1/namespaces/n/jobs", None),
        ("/apis/apps/v2/deployments", None),
        ("/other", None),
    ],
)
def test_paths(path: str, found: tuple[str, str | None, str, str] | None) -> None:
    """Resource, namespace, name, subresource; None where nothing is served."""
    where = place(Catalog(), path)
    assert found == (where and (where.resource.qualified, where.namespace, where.name, where.subresource))
