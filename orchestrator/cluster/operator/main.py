"""`trimtab operator`: reads its configuration, wires, runs until SIGTERM. Exit 0 when it ended as asked."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import structlog

from orchestrator.cluster.client.api import Api
from orchestrator.cluster.client.connect import connect
from orchestrator.cluster.operator.config import OperatorConfig
from orchestrator.cluster.operator.health import HealthServer
from orchestrator.cluster.operator.manager import Operator
from orchestrator.cluster.operator.network_probe import NetworkProbe
from services.common.spec.load import load_toml
from services.common.telemetry import MetricsServer, configure_logging

_log = structlog.get_logger(__name__)


def run_operator(
    config_file: Path | None, overrides: Sequence[str], kubeconfig: Path | None, context: str | None
) -> int:
    """Until SIGTERM or SIGINT. Raises ConfigError for what cannot be carried out."""
    config = load_toml(config_file, OperatorConfig, overrides)
    configure_logging(config.log, "operator", config.who())
    api, probe = Api(connect(kubeconfig, context)), NetworkProbe()
    operator = Operator(config, api, probe)
    metrics = MetricsServer(config.host, config.metrics_port)
    health = HealthServer(config.host, config.health_port, alive=operator.not_alive, ready=operator.not_ready)
    _log.info("starting", metrics_port=metrics.port, health_port=health.port, namespaces=config.namespaces)
    stop = _signals()
    operator.start()
    stop.wait()
    _log.info("stopping")
    operator.stop()
    health.close()
    metrics.close()
    probe.close()
    api.close()
    _log.info("stopped")
    return 0


def _signals() -> threading.Event:
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop
