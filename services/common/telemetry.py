"""Logs and metrics of one process: JSON lines on stderr, Prometheus counters. Knows no service's domain.

Ids travel by context variables: whatever is logged inside `bound(run=…, rollout=…)` carries them, in the
libraries' own log lines too.
"""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app

from services.common.errors import ConfigError
from services.common.spec.service import LogSpec, ServiceSpec

CALLS = Counter("trimtab_grpc_calls", "Calls answered, by method and gRPC code.", ["method", "code"])
CALL_SECONDS = Histogram(
    "trimtab_grpc_call_seconds",
    "Time from a call's arrival to its end, seconds.",
    ["method"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
CALLS_IN_FLIGHT = Gauge("trimtab_grpc_calls_in_flight", "Calls being worked on.", ["method"])
DRAINING = Gauge("trimtab_draining", "1 while this replica is marked to drain: it is not ready.")


def replica_name(spec: ServiceSpec) -> str:
    """The replica's name: the configured one, else host name and process id."""
    return spec.name or f"{socket.gethostname()}-{os.getpid()}"


def configure_logging(spec: LogSpec, service: str, replica: str) -> None:
    """Send structlog's and the standard library's records to stderr, each with service and replica."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _constant_fields(service=service, replica=replica),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if spec.json_lines
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(spec.level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _constant_fields(**fields: str) -> structlog.typing.Processor:
    def add(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        for name, value in fields.items():
            event.setdefault(name, value)
        return event

    return add


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Log lines inside carry these ids, for example run and rollout; empty ones are left out."""
    with structlog.contextvars.bound_contextvars(**{name: value for name, value in ids.items() if value}):
        yield


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """A scrape every few seconds is no news."""


class MetricsServer:
    """The Prometheus page of this process, on its own port and thread."""

    def __init__(self, host: str, port: int) -> None:
        kind = _ServerV6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, make_wsgi_app(), kind, _Quiet)
        except OSError as error:
            raise ConfigError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
