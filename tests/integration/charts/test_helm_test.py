"""The pod of `helm test` asks what the release runs, and its program tells answers from silence."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from orchestrator.cluster.operator.health import HealthServer
from orchestrator.local.ports import free_ports
from tests.integration.charts.matrix import MATRIX
from tests.integration.charts.rendering import CHART, Manifest, named, of_kind, render


@pytest.fixture(scope="module")
def ask() -> ModuleType:
    """The program as the pod has it: a file, no package."""
    spec = importlib.util.spec_from_file_location("ask", CHART / "files" / "ask.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def health() -> Iterator[dict[str, Any]]:
    """The operator's health pages; what is wrong is what the test says."""
    told: dict[str, Any] = {"wrong": ""}
    server = HealthServer("127.0.0.1", 0, alive=lambda: "", ready=lambda: str(told["wrong"]))
    told["url"] = f"http://127.0.0.1:{server.port}/readyz"
    yield told
    server.close()


def test_it_passes_when_all_answer(ask: ModuleType, health: dict[str, Any]) -> None:
    """The operator says 200, a port takes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert ask.main([health["url"], f"tcp://127.0.0.1:{port}"], patience_seconds=5) == 0


def test_it_fails_by_name_when_one_does_not(
    ask: ModuleType, health: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator that is not ready, a port that nobody listens on."""
    health["wrong"] = "waiting for the first lists"
    assert ask.main([health["url"]], patience_seconds=0) == 1
    [port] = free_ports(1)
    assert ask.main([f"tcp://127.0.0.1:{port}"], patience_seconds=0) == 1
    assert f"127.0.0.1:{port} does not answer" in capsys.readouterr().out


@pytest.mark.parametrize("name", MATRIX)
def test_it_asks_every_service_of_the_release(name: str) -> None:
    """Each URL names a Service that is rendered and a port of it; each workload is asked."""
    manifests = render(MATRIX[name])
    [pod] = of_kind(manifests, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    urls = _urls(pod)
    services = {item["metadata"]["name"]: item for item in of_kind(manifests, "Service")}
    for url in urls:
        host, _, port = url.partition("://")[2].partition("/")[0].partition(":")
        assert int(port) in {each["port"] for each in named(manifests, "Service", host)["spec"]["ports"]}
    assert {url.partition("://")[2].partition(":")[0] for url in urls} == set(services)
    workloads = {str(sorted(item["spec"]["selector"].items())) for item in services.values()}
    assert len(workloads) == len(of_kind(manifests, "Deployment", "StatefulSet"))


def _urls(pod: Manifest) -> list[str]:
    [container] = pod["spec"]["containers"]
    return list(container["args"][1:])
