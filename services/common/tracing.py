"""OpenTelemetry traces of calls and stages, and the request id. Knows no service's domain.

    caller's traceparent ──▶ call ──┬─▶ tokenise ─▶ queue ─▶ model      (phases, told when they are over)
                                    └─▶ headers(): traceparent for whoever is asked next
    stage entry's traceparent ──▶ stage reward/hh

Without an endpoint, or without the packages of the extra [tracing], everything here does nothing: `current()` is
one shared object whose methods return at once.

Decision: spans are made by hand, about 10 lines for gRPC and HTTP together. The contrib interceptor of grpc.aio keeps
the span in the context of another task than the handler's, and wraps handlers a second time beside CallGuard.
Decision: phases are recorded when they are over, with their times. A batch serves many calls at once, so no span
could be "current" on the model's thread.
Decision: the provider is this module's own, never the global one: libraries do not begin to trace by themselves.
"""

from __future__ import annotations

import importlib.util
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from services.common.errors import ConfigError, TrimtabError

if TYPE_CHECKING:
    from services.common.spec.tracing import TracingSpec

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
REQUEST_ID = "x-request-id"
# What a caller may choose as its own id: it ends up in log lines and files.
_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_request: ContextVar[str] = ContextVar("trimtab_request_id", default="")


class Trace:
    """One call's span, or nothing. Safe to use from any thread, also after the call has ended."""

    __slots__ = ("_context", "_tracer", "span")

    def __init__(self, tracer: Any = None, span: Any = None) -> None:
        self._tracer = tracer
        self.span = span
        self._context = None if span is None else _within(span)

    def phase(self, name: str, began: float, ended: float, **attributes: str | float) -> None:
        """A part of the call that is over; times of time.monotonic()."""
        if self.span is not None:
            _record(self._tracer, name, self._context, began, ended, attributes)

    def headers(self) -> dict[str, str]:
        """traceparent (and tracestate) for a request made on this call's behalf; empty when off."""
        return {} if self.span is None else _propagated(self._context)

    @property
    def trace_id(self) -> str:
        """32 hex digits; empty when off."""
        return "" if self.span is None else f"{self.span.get_span_context().trace_id:032x}"


NO_TRACE = Trace()
_current: ContextVar[Trace] = ContextVar("trimtab_trace", default=NO_TRACE)


class _Tracing:
    """What is there while tracing is on: this process's provider and tracer."""

    def __init__(self, provider: Any) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("trimtab")


_on: _Tracing | None = None


def configure(spec: TracingSpec, service: str, replica: str) -> None:
    """Begin to trace, if the configuration says so. ConfigError where the packages are not installed."""
    if not spec.endpoint:
        return
    if not installed():
        raise ConfigError(
            'tracing.endpoint is set, but its packages are missing: pip install "trimtab-platform[tracing]"'
        )
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    processor = BatchSpanProcessor(_exporter(spec), max_queue_size=spec.max_queued_spans)
    start(processor, service=service, replica=replica, share=spec.share)


def installed() -> bool:
    """Whether the packages of the extra [tracing] are there. Does not import them."""
    try:
        return importlib.util.find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:
        return False


def start(processor: Any, *, service: str, replica: str, share: float = 1.0) -> None:
    """Trace into a span processor of one's own, for example one that keeps spans in memory."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    global _on  # noqa: PLW0603 - a process has one tracing, as it has one log
    close()
    resource = Resource.create({"service.name": f"trimtab-{service}", "service.instance.id": replica})
    provider = TracerProvider(
        resource=resource, sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False
    )
    provider.add_span_processor(processor)
    _on = _Tracing(provider)


def close() -> None:
    """Export what is there, then be off. At most the exporter's own time limit."""
    global _on
    ended, _on = _on, None
    if ended is not None:
        ended.provider.shutdown()


def enabled() -> bool:
    """Whether spans are recorded at all."""
    return _on is not None


def current() -> Trace:
    """The call's span in this task or thread; take it along to where contexts do not reach."""
    return _current.get()


def request_id() -> str:
    """The id of the call that is being answered; empty outside of calls."""
    return _request.get()


@contextmanager
def call(name: str, metadata: Iterable[tuple[str, Any]], **attributes: str | float) -> Iterator[Trace]:
    """Around one call that came in: continues the caller's trace and names the request.

    metadata: gRPC metadata or HTTP headers as (lower-case name, value) pairs. An exception marks the span as failed and
    passes through.
    """
    given = {
        key: value
        for key, value in metadata
        if key in (TRACEPARENT, TRACESTATE, REQUEST_ID) and isinstance(value, str)
    }
    named = _request.set(_named(given))
    try:
        if _on is None:
            yield NO_TRACE
        else:
            with _traced(_on, name, given, {**attributes, "request.id": _request.get()}) as trace:
                yield trace
    finally:
        _request.reset(named)


def stage(
    name: str, traceparent: str, began: float, ended: float, *, error: str = "", **attributes: str | float
) -> None:
    """A stage of a run has worked on an entry that carries `traceparent`; times of time.monotonic()."""
    if _on is not None and traceparent:
        parent = _extracted({TRACEPARENT: traceparent})
        _record(_on.tracer, name, parent, began, ended, attributes, error=error)


def begun(name: str, **attributes: str | float) -> str:
    """A new trace, and the traceparent of its first span: for an entry that is admitted. Empty when off."""
    if _on is None:
        return ""
    from opentelemetry.context import Context

    span = _on.tracer.start_span(name, context=Context(), attributes=attributes)
    span.end()
    return _propagated(_within(span)).get(TRACEPARENT, "")


@contextmanager
def _traced(
    on: _Tracing, name: str, given: Mapping[str, str], attributes: Mapping[str, str | float]
) -> Iterator[Trace]:
    from opentelemetry.trace import SpanKind

    span = on.tracer.start_span(
        name, context=_extracted(given), kind=SpanKind.SERVER, attributes=dict(attributes)
    )
    trace = Trace(on.tracer, span)
    token = _current.set(trace)
    try:
        yield trace
    except BaseException as error:
        _failed(span, error)
        raise
    finally:
        _current.reset(token)
        span.end()


def _failed(span: Any, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    # The kind alone: an error's text may quote what was to be scored.
    span.set_attribute(
        "error.type", error.status if isinstance(error, TrimtabError) else type(error).__name__
    )
    span.set_status(Status(StatusCode.ERROR))


def _record(
    tracer: Any,
    name: str,
    context: Any,
    began: float,
    ended: float,
    attributes: Mapping[str, str | float],
    *,
    error: str = "",
) -> None:
    from opentelemetry.trace import Status, StatusCode

    # Spans carry the wall clock's time; steps of that clock must not stretch them.
    offset = time.time_ns() - time.monotonic_ns()
    span = tracer.start_span(
        name, context=context, start_time=offset + int(began * 1e9), attributes=dict(attributes)
    )
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))
    span.end(end_time=offset + int(ended * 1e9))


def _named(given: Mapping[str, str]) -> str:
    wanted = given.get(REQUEST_ID, "")
    if _ID.fullmatch(wanted):
        return wanted
    parent = given.get(TRACEPARENT, "").split("-")
    return parent[1] if len(parent) == 4 and re.fullmatch("[0-9a-f]{32}", parent[1]) else uuid.uuid4().hex


def _within(span: Any) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span, Context())


def _extracted(given: Mapping[str, str]) -> Any:
    """The caller's context; an empty one where its traceparent is none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(dict(given), Context())


def _propagated(context: Any) -> dict[str, str]:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers, context)
    return headers


def _exporter(spec: TracingSpec) -> Any:
    scheme, _, place = spec.endpoint.partition("://")
    headers = {name.lower(): value.get_secret_value() for name, value in spec.headers.items()}
    if scheme.startswith("grpc"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(
            endpoint=place.rstrip("/"),
            insecure=scheme == "grpc",
            headers=headers,
            timeout=spec.timeout_seconds,
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    # Collectors take traces at /v1/traces (OTLP 1.0, "OTLP/HTTP request").
    path = "" if "/" in place.rstrip("/") else "/v1/traces"
    return HttpExporter(
        endpoint=spec.endpoint.rstrip("/") + path, headers=headers, timeout=spec.timeout_seconds
    )
