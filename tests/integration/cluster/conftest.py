"""One API server for all tests here: ours, or the one of KUBECONFIG (`make test-cluster KUBECONFIG=…`)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kubernetes import client

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.client.connect import connect
from orchestrator.cluster.control.resources import Ref
from orchestrator.cluster.crds import crds
from services.common.errors import NotFound
from tests.fakes.kube import KubeServer
from tests.integration.cluster.harness import Harness, eventually

REAL = "TRIMTAB_TEST_KUBECONFIG"


@pytest.fixture(scope="session")
def fake() -> Iterator[KubeServer | None]:
    """Our own server; None where the tests speak to a real one."""
    if os.environ.get(REAL):
        yield None
        return
    with KubeServer() as server:
        yield server


@pytest.fixture(scope="session")
def kubeconfig(fake: KubeServer | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """How to reach the server."""
    if fake is None:
        return Path(os.environ[REAL])
    return fake.kubeconfig(tmp_path_factory.mktemp("kube") / "config")


@pytest.fixture(scope="session")
def api_client(kubeconfig: Path) -> Iterator[client.ApiClient]:
    """The official client, our CRDs served."""
    made = connect(kubeconfig)
    serve_crds(made)
    yield made
    made.rest_client.pool_manager.clear()


def serve_crds(made: client.ApiClient) -> None:
    """Install our CRDs and wait until they are served."""
    extensions = client.ApiextensionsV1Api(made)
    for crd in crds():
        extensions.patch_custom_resource_definition(
            crd["metadata"]["name"],
            crd,
            field_manager="test",
            force=True,
            _content_type="application/apply-patch+yaml",
        )

    def established() -> bool:
        return all(
            any(one.type == "Established" and one.status == "True" for one in found.status.conditions or ())
            for crd in crds()
            if (found := extensions.read_custom_resource_definition(crd["metadata"]["name"]))
        )

    eventually(established)


@pytest.fixture
def namespace(api_client: client.ApiClient) -> Iterator[str]:
    """A namespace of this test's own."""
    name = f"trimtab-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(api_client)
    core.create_namespace({"metadata": {"name": name}})
    yield name
    release(Api(api_client), name)
    core.delete_namespace(name)


def release(api: Api, namespace: str) -> None:
    """No operator is left to do what the finalisers wait for: without this the namespace would never go."""
    for kind in ("TrainingRun", "RewardModel"):
        for item in api.list(kind, namespace).items:
            if item["metadata"].get("finalizers"):
                with suppress(NotFound):
                    api.merge(Ref.of(item), {"metadata": {"finalizers": None}}, "test")


@pytest.fixture
def harness(fake: KubeServer | None, api_client: client.ApiClient, namespace: str) -> Harness:
    """An operator taken apart."""
    return Harness(api_client, namespace, real=fake is None)


@pytest.fixture
def faulty(fake: KubeServer | None) -> KubeServer:
    """The server, for tests that let it fail on purpose, or bring pods of their own: ours alone lets them."""
    if fake is None:
        pytest.skip("a real server does not fail when told to, and its controllers own the pods")
    return fake
