"""The life of a service's process: listen, load, serve, drain. Knows nothing of what a service does.

    open ports ──▶ NOT_SERVING ──application.start()──▶ SERVING ──SIGTERM──▶ NOT_SERVING
                   (calls: UNAVAILABLE)                                       │ application.drain()
                                                              exit code ◀─────┘ calls in flight end

The exit code after SIGTERM is 0, unless the application says another (MayBeCutOff).
Marked to drain (drain_mark.py) it is NOT_SERVING, though calls that come are answered, and SERVING again after.

Decision: SO_REUSEPORT is off. With it on, a second process on the same port would silently share the calls.
Decision: the admission limit is our own (interceptors.py): gRPC's maximum_concurrent_rpcs refuses health too.
Decision: health listens on a plaintext port of its own as well, since Kubernetes' probes speak no TLS. On the
main port it needs no key, for balancing clients; reflection does, where access control is on.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common import garbage
from services.common.access.gate import Gate
from services.common.access.opening import open_gate
from services.common.access.safety import check_access
from services.common.access.tls import TlsFiles
from services.common.drain_mark import DrainMark, Mark
from services.common.errors import ConfigError
from services.common.http_guard import AsgiApp, Stage
from services.common.interceptors import CallGuard
from services.common.spec.service import ServerSpec, ServiceSpec
from services.common.telemetry import DRAINING, MetricsServer

if TYPE_CHECKING:
    from services.common.http_server import HttpServer

LIVE = "live"
"""Health service that says SERVING for as long as the process answers at all: for liveness probes, so that a replica
which is not ready (loading, stale) is not killed for it."""
_UNSEEN = 16
"""Times as many calls as are taken may have arrived and not been looked at: more are cancelled by gRPC itself."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_log = structlog.get_logger(__name__)


class Application(Protocol):
    """What a service brings: its servicers, what it loads, how it lets go."""

    name: str

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicers; return their full gRPC service names."""
        ...

    async def start(self) -> None:
        """Load, warm up, start workers. Health says NOT_SERVING until this returns."""
        ...

    async def drain(self) -> None:
        """Stop reading and hand back what is held. Called once, whether or not start() has finished."""
        ...

    async def wait(self) -> int:
        """Return an exit code when the service ends by itself; most never return."""
        ...


@runtime_checkable
class AnswersEarly(Protocol):
    """An application that takes calls while it starts (others refuse them with UNAVAILABLE)."""

    answers_while_starting: bool


@runtime_checkable
class KeepsWhatItLoads(Protocol):
    """An application whose models live as long as its process: see garbage.py."""

    keeps_what_it_loads: bool


@runtime_checkable
class AnswersHttp(Protocol):
    """An application that answers HTTP too, on server.http_port."""

    def http_app(self, gate: Gate, stage: Callable[[], Stage]) -> AsgiApp:
        """What is served there, its guard included. Called once, before start()."""
        ...


@runtime_checkable
class Rests(Protocol):
    """An application that is not ready at times, though it answers: while `rest` is there."""

    rest: Mark


@runtime_checkable
class WritesLast(Protocol):
    """An application that has something to write when the last call has ended."""

    async def finish(self) -> None:
        """Write it. Called once, after drain() and the calls in flight; seconds at most."""
        ...


@runtime_checkable
class MayBeCutOff(Protocol):
    """An application with work of its own, that a signal may end too early."""

    def cut_off(self) -> int:
        """The exit code after a signal, also while it loads. Called once, after drain()."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a service listens, each as host:port; http is empty where it does not."""

    grpc: str
    health: str
    metrics: str
    http: str = ""


class ServiceServer:
    """The listening side of a service: two gRPC servers, the metrics page, the health state.

    gate, tls: who may call and with which certificates, the same for HTTP beside it.
    """

    def __init__(self, spec: ServiceSpec, application: Application) -> None:
        check_access(spec)
        self._spec = spec
        self._application = application
        self.gate = open_gate(spec)
        self.tls = None if spec.tls is None else TlsFiles(spec.tls)
        self._guard = CallGuard(spec.server, application.name, self.gate)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(interceptors=[self._guard], options=server_options(spec.server))
        self._health_server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._metrics: MetricsServer | None = None
        self._http: HttpServer | None = None
        self._draining = False
        self._marked = False
        self._mark = DrainMark(spec.server.drain_file)
        self._resting = False
        self._following: list[asyncio.Task[None]] = []
        self._names: tuple[str, ...] = ()
        self.endpoints = Endpoints("", "", "")

    async def open(self) -> None:
        """Listen on all ports and write them to the endpoints file. ConfigError where a port is in use."""
        self._guard.ready = isinstance(self._application, AnswersEarly)
        self._names = ("", *self._application.register(self._server))
        for server in (self._server, self._health_server):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            [*self._names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        await self._set_health(_NOT_SERVING)
        await self._health.set(LIVE, _SERVING)
        where = self._spec.server
        grpc_port = _listen(self._server, where.host, where.port, self.tls)
        health_port = _listen(self._health_server, where.host, where.health_port)
        check_port(where.host, where.metrics_port)
        self._metrics = MetricsServer(where.host, where.metrics_port)
        await self._server.start()
        await self._health_server.start()
        self.endpoints = Endpoints(
            grpc=join_address(where.host, grpc_port),
            health=join_address(where.host, health_port),
            metrics=join_address(where.host, self._metrics.port),
            http=await self._open_http(),
        )
        if self._spec.endpoints_file is not None:
            write_endpoints(self._spec.endpoints_file, self.endpoints)
        _log.info("listening", **asdict(self.endpoints))

    async def _open_http(self) -> str:
        where = self._spec.server
        if where.http_port is None:
            return ""
        if not isinstance(self._application, AnswersHttp):
            raise ConfigError(f"server.http_port: the {self._application.name} service has no HTTP")
        from services.common.http_server import HttpServer

        app = self._application.http_app(self.gate, self._stage)
        tls = None if self.tls is None else self.tls.ssl_context()
        self._http = HttpServer(app, where.host, where.http_port, tls=tls)
        await self._http.open()
        return join_address(where.host, self._http.port)

    def _stage(self) -> Stage:
        if self._draining or self._marked:
            return "draining"
        return "serving" if self._guard.ready else "starting"

    async def start(self) -> None:
        """Let the application load; then say SERVING."""
        await self._application.start()
        self._guard.ready = True
        await self._set_health(_SERVING)
        self._following.append(asyncio.create_task(self._mark.follow(self._heed)))
        if isinstance(self._application, Rests):
            self._following.append(asyncio.create_task(self._application.rest.follow(self._heed_rest)))
        _log.info("serving")

    async def _heed(self, marked: bool) -> None:
        """Callers are to go elsewhere, or may come again. Health alone says it: who comes late is answered."""
        self._marked = marked
        DRAINING.set(marked)
        await self._tell_health()
        _log.info("marked to drain: not ready" if marked else "the mark is gone: ready")

    async def _heed_rest(self, resting: bool) -> None:
        self._resting = resting
        await self._tell_health()
        _log.info("resting: not ready" if resting else "rested: ready")

    async def _tell_health(self) -> None:
        await self._set_health(_NOT_SERVING if self._marked or self._resting else _SERVING)

    async def drain(self) -> None:
        """NOT_SERVING, hand back, let calls end; all within spec.server.drain_seconds."""
        ends = time.monotonic() + self._spec.server.drain_seconds
        self._draining = True
        self._follow_no_more()
        await self._health.enter_graceful_shutdown()
        try:
            # A part is kept for the calls in flight.
            await asyncio.wait_for(self._application.drain(), self._spec.server.drain_seconds * 0.8)
        except TimeoutError:
            _log.warning("drain was cut off", seconds=self._spec.server.drain_seconds)
        except Exception:
            _log.exception("drain failed")
        left = max(ends - time.monotonic(), 0.1)
        await asyncio.gather(self._server.stop(left), *([self._http.drain(left)] if self._http else []))
        if isinstance(self._application, WritesLast):
            await self._application.finish()

    async def close(self) -> None:
        """Stop listening, at once."""
        self._follow_no_more()
        await self._server.stop(None)
        await self._health_server.stop(None)
        if self._http is not None:
            await self._http.close()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
            self._metrics = None

    def _follow_no_more(self) -> None:
        for task in self._following:
            task.cancel()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in self._names:
            await self._health.set(name, status)


async def run_service(spec: ServiceSpec, application: Application) -> int:
    """Run until SIGTERM, SIGINT or the application's own end; the exit code. Errors of start() are raised."""
    stop = asyncio.Event()
    server = ServiceServer(spec, application)
    with _signals_set(stop):
        try:
            await server.open()
            return await _serve(server, application, stop)
        finally:
            await server.close()


async def _serve(server: ServiceServer, application: Application, stop: asyncio.Event) -> int:
    stopping = asyncio.ensure_future(stop.wait())
    try:
        if not await _before(stopping, server.start()):
            _log.info("stopped while loading")
            await server.drain()
            return _stopped(application)
        if isinstance(application, KeepsWhatItLoads) and application.keeps_what_it_loads:
            garbage.set_aside()
        waiting = asyncio.ensure_future(application.wait())
        try:
            await asyncio.wait((stopping, waiting), return_when=asyncio.FIRST_COMPLETED)
            _log.info("draining")
            await server.drain()
            # Draining may cancel the very work that is waited for: that is how it ends, not an error.
            if waiting.done() and not waiting.cancelled():
                return await waiting
            return _stopped(application)
        finally:
            waiting.cancel()
    finally:
        stopping.cancel()


def _stopped(application: Application) -> int:
    return application.cut_off() if isinstance(application, MayBeCutOff) else 0


async def _before(stopping: asyncio.Future[Any], work: Coroutine[Any, Any, None]) -> bool:
    """Do the work; false if `stopping` came first: then it is cancelled, not to go on beside drain()."""
    task = asyncio.ensure_future(work)
    await asyncio.wait((stopping, task), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
        return True
    task.cancel()
    await asyncio.wait((task,), timeout=1)
    return False


@asynccontextmanager
async def serving(spec: ServiceSpec, application: Application) -> AsyncIterator[Endpoints]:
    """A started service inside this process, drained at the end: for --in-process and for tests."""
    server = ServiceServer(spec, application)
    try:
        await server.open()
        await server.start()
        yield server.endpoints
        await server.drain()
    finally:
        await server.close()


def server_options(spec: ServerSpec) -> list[tuple[str, int]]:
    """gRPC's own settings: sizes both ways, connection age, keepalive that clients may rely on."""
    size = spec.max_message_mib << 20
    return [
        ("grpc.max_send_message_length", size),
        ("grpc.max_receive_message_length", size),
        ("grpc.max_connection_age_ms", round(spec.max_connection_age_seconds * 1000)),
        # A call that began on an old connection keeps its whole deadline.
        ("grpc.max_connection_age_grace_ms", round(spec.default_deadline_seconds * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Who is refused is our decision, with a hint when to come again: by itself gRPC cancels calls, without a word,
        # at random beyond a thousand that have arrived and were not looked at yet.
        ("grpc.server.max_pending_requests", _UNSEEN * spec.max_queued_calls),
        ("grpc.server.max_pending_requests_hard_limit", 4 * _UNSEEN * spec.max_queued_calls),
        ("grpc.so_reuseport", 0),
    ]


def join_address(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def check_port(host: str, port: int) -> None:
    """ConfigError in one clear line where nobody can listen there. gRPC itself tells no reason."""
    if port == 0:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is in use") from error
        raise ConfigError(f"cannot listen on {join_address(host, port)}: {error.strerror}") from error


def _listen(server: grpc.aio.Server, host: str, port: int, tls: TlsFiles | None = None) -> int:
    check_port(host, port)
    address = join_address(host, port)
    try:
        if tls is not None:
            return server.add_secure_port(address, tls.grpc_credentials())
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {join_address(host, port)}") from error


def write_endpoints(path: Path, endpoints: Endpoints) -> None:
    """Write the endpoints as JSON; a reader sees the whole file or none. ConfigError where it cannot be written."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    addresses = {kind: address for kind, address in asdict(endpoints).items() if address}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(addresses) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        told = (error.strerror or "cannot be written").lower()
        raise ConfigError(f"endpoints_file: {path}: {told}") from error


@contextmanager
def _signals_set(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
