"""The server that the suite runs against: ours, or a real one that TRIMTAB_TEST_KUBECONFIG names.

Not KUBECONFIG: whoever has that set to work with a cluster does not want tests to run in it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from kubernetes import client, config

from orchestrator.cluster.crds import crds
from tests.contract.kube.cluster import Cluster, Refused, until
from tests.contract.kube.objects import WIDGETS
from tests.fakes.kube import KubeServer

REAL = "TRIMTAB_TEST_KUBECONFIG"


@pytest.fixture(scope="session")
def fake_server() -> Iterator[KubeServer | None]:
    """Ours; None where there is a real one."""
    if os.environ.get(REAL):
        yield None
        return
    with KubeServer(bookmark_seconds=0.1) as server:
        yield server


@pytest.fixture(scope="session")
def api(fake_server: KubeServer | None) -> Iterator[client.ApiClient]:
    """The official client, with the kinds of the suite and of the project defined; a real cluster is left as it was."""
    from_config: Any = config.new_client_from_config
    made: client.ApiClient = fake_server.client() if fake_server else from_config(os.environ[REAL])
    cluster = Cluster(made, "default")
    ours = [crd["metadata"]["name"] for crd in (WIDGETS, *crds())]
    new = [name for name in ours if cluster.is_gone("CustomResourceDefinition", name)]
    for crd in (WIDGETS, *crds()):
        cluster.apply(crd, "contract-suite", force=True)
    for name in ours:
        until(partial(_is_established, cluster, name), f"{name} established")
    yield made
    for name in new:
        cluster.delete("CustomResourceDefinition", name)
    for name in new:
        until(partial(cluster.is_gone, "CustomResourceDefinition", name), f"{name} gone", seconds=60)


def _is_established(cluster: Cluster, name: str) -> bool:
    """Whether the kind is served."""
    crd: dict[str, Any] = cluster.get("CustomResourceDefinition", name)
    # A real server may say null for a moment.
    conditions = crd.get("status", {}).get("conditions") or ()
    if not any(each["type"] == "Established" and each["status"] == "True" for each in conditions):
        return False
    try:
        cluster.listed(crd["spec"]["names"]["kind"])
    except Refused:
        return False
    return True


@pytest.fixture
def cluster(api: client.ApiClient, fake_server: KubeServer | None) -> Iterator[Cluster]:
    """With an empty namespace."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    made = Cluster(api, name)
    made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    if fake_server is None:  # pods need it, and a controller makes it
        until(lambda: not made.is_gone("ServiceAccount", "default"), "service account made")
    yield made
    made.delete("Namespace", name)


@pytest.fixture
def server(fake_server: KubeServer | None) -> Iterator[KubeServer]:
    """Ours, to make things go wrong in it; such tests do not run against a real one."""
    if fake_server is None:
        pytest.skip("faults are injected into the server of the tests only")
    yield fake_server
    fake_server.calls.heal()
