"""What the operator asks of a run's services over the network: answered, not answered, nonsense."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.cluster.operator.network_probe import NetworkProbe
from orchestrator.cluster.operator.probe import Door
from orchestrator.local.ports import free_ports
from services.common.stage_metrics import StageMetrics
from services.common.telemetry import MetricsServer


@pytest.fixture
def probe() -> Iterator[NetworkProbe]:
    made = NetworkProbe()
    yield made
    made.close()


def test_pages_of_pods(probe: NetworkProbe) -> None:
    """Those that answer, whoever else does not."""
    StageMetrics("probed").left("done")
    server = MetricsServer("127.0.0.1", 0)
    try:
        nobody = free_ports(1)[0]
        figures = probe.pods({"a": ("127.0.0.1", server.port), "b": ("127.0.0.1", nobody)})
    finally:
        server.close()
    assert set(figures) == {"a"}
    assert figures["a"].groups >= 1


def test_nobody_there_is_an_answer(probe: NetworkProbe) -> None:
    """Never an exception: a lost scrape is one."""
    nowhere = f"127.0.0.1:{free_ports(1)[0]}"
    assert probe.learner(Door(nowhere)) is None
    assert probe.backlog(Door(f"redis://{nowhere}/0"), "run") is None
    assert not probe.checkpoint(Door(nowhere), 1.0)
