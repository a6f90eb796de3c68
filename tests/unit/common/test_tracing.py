"""Tracing: W3C contexts in and out, phases with their times, and nothing at all when it is off."""

from __future__ import annotations

import asyncio
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from services.common import tracing
from services.common.errors import ConfigError, Overloaded
from services.common.spec.tracing import TracingSpec

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.start(SimpleSpanProcessor(exporter), service="reward", replica="r")
    yield exporter
    tracing.close()


def by_name(exporter: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_call_continues_the_callers_trace(spans: InMemorySpanExporter) -> None:
    """The call's span is a child of the traceparent it came with; its phases are children of the call."""
    began = time.monotonic()
    with tracing.call(
        "Score", [("traceparent", SAMPLED), ("tracestate", "a=b"), ("other", b"\x00")], rows=2
    ) as trace:
        trace.phase("queue", began, began + 0.25)
        trace.phase("model", began + 0.25, began + 1.0, tokens=40)
        assert tracing.current() is trace
        assert trace.trace_id == TRACE
    found = by_name(spans)
    call, queue, model = found["Score"], found["queue"], found["model"]
    assert f"{call.context.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == PARENT
    assert call.attributes["rows"] == 2
    assert {queue.parent.span_id, model.parent.span_id} == {call.context.span_id}
    assert queue.end_time - queue.start_time == pytest.approx(0.25e9, abs=1e3)
    assert model.end_time - model.start_time == pytest.approx(0.75e9, abs=1e3)
    assert model.start_time - queue.end_time == pytest.approx(0, abs=1e6)
    assert model.attributes["tokens"] == 40
    assert call.resource.attributes["service.name"] == "trimtab-reward"


def test_the_context_goes_on(spans: InMemorySpanExporter) -> None:
    """What is asked on the call's behalf gets a traceparent of the same trace, with the call as parent."""
    with tracing.call("Score", [("traceparent", SAMPLED), ("tracestate", "a=b")]):
        headers = tracing.current().headers()
    call = by_name(spans)["Score"]
    assert headers == {"traceparent": f"00-{TRACE}-{call.context.span_id:016x}-01", "tracestate": "a=b"}


def test_a_callers_decision_is_kept(spans: InMemorySpanExporter) -> None:
    """A trace that its caller does not sample is not recorded here, and says so to the next."""
    with tracing.call("Score", [("traceparent", UNSAMPLED)]) as trace:
        trace.phase("model", 0.0, 1.0)
        assert trace.headers()["traceparent"].endswith("-00")
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize(
    "wrong", ["", "x", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", "é" * 55, SAMPLED + "-x" * 999]
)
def test_a_traceparent_that_is_none_begins_a_new_trace(spans: InMemorySpanExporter, wrong: str) -> None:
    """Whatever a caller sends there, the call is answered and traced from here."""
    with tracing.call("Score", [("traceparent", wrong)]):
        pass
    assert by_name(spans)["Score"].parent is None


def test_errors_mark_the_span_and_pass(spans: InMemorySpanExporter) -> None:
    """A failed call's span is an error with the status of ours, never with the error's text."""
    with pytest.raises(Overloaded), tracing.call("Score", []):
        raise Overloaded("secret text")
    span = by_name(spans)["Score"]
    assert span.attributes["error.type"] == "RESOURCE_EXHAUSTED"
    assert not span.status.is_ok
    assert "secret" not in str(span.to_json())


def test_stages_continue_the_entrys_trace(spans: InMemorySpanExporter) -> None:
    """What admission begins a stage continues: same trace, the admission's span as parent."""
    traceparent = tracing.begun("admit", group="g")
    tracing.stage("stage reward/hh", traceparent, 1.0, 3.5, groups=1)
    tracing.stage("stage without", "", 1.0, 2.0)
    found = by_name(spans)
    assert set(found) == {"admit", "stage reward/hh"}
    stage = found["stage reward/hh"]
    assert stage.parent.span_id == found["admit"].context.span_id
    assert stage.end_time - stage.start_time == pytest.approx(2.5e9, abs=1e3)


async def test_calls_side_by_side_are_kept_apart(spans: InMemorySpanExporter) -> None:
    """Each task has its own current span, and none outside of calls."""

    async def one(number: int) -> str:
        with tracing.call(f"call {number}", []) as trace:
            await asyncio.sleep(0)
            assert tracing.current() is trace
            return trace.trace_id

    assert len(set(await asyncio.gather(*(one(number) for number in range(20))))) == 20
    assert tracing.current() is tracing.NO_TRACE


def test_off_is_nothing() -> None:
    """Without configuration every function answers, and nothing is made or imported."""
    tracing.configure(TracingSpec(), "reward", "r")
    assert not tracing.enabled()
    with tracing.call("Score", [("traceparent", SAMPLED)]) as trace:
        assert trace is tracing.current() is tracing.NO_TRACE
        trace.phase("model", 0.0, 1.0)
        assert (trace.headers(), trace.trace_id) == ({}, "")
    assert tracing.begun("admit") == ""
    code = (
        "import sys\nfrom services.common import tracing\n"
        "with tracing.call('x', []): tracing.stage('s', '00-1', 0, 1)\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(tracing.__file__).parents[2])


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([("x-request-id", "run-7/42")], "run-7/42"),
        ([("traceparent", SAMPLED)], TRACE),
        ([("x-request-id", "two\nlines"), ("traceparent", SAMPLED)], TRACE),
        ([("x-request-id", "x" * 129)], ""),
        ([("x-request-id", b"bytes")], ""),
        ([], ""),
    ],
)
def test_requests_have_ids(metadata: list[tuple[str, Any]], expected: str) -> None:
    """The caller's own id if it is a sound one, else its trace's, else a new one; none outside of calls."""
    with tracing.call("Score", metadata):
        got = tracing.request_id()
    assert got == expected if expected else len(got) == 32
    assert tracing.request_id() == ""


@pytest.mark.parametrize("wrong", ["localhost:4317", "ftp://host:1", "http://"])
def test_endpoints_are_checked(wrong: str) -> None:
    """An endpoint without a scheme that is known, or without a host, is told so."""
    with pytest.raises(ValidationError, match="expected http"):
        TracingSpec(endpoint=wrong)


def test_missing_packages_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint without the packages is refused at the start, naming the extra."""
    assert tracing.installed()
    # Without the extra: FastAPI may have brought the API, or not even that is there.
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    assert not tracing.installed()
    monkeypatch.delitem(sys.modules, "opentelemetry.sdk")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert not tracing.installed()
    with pytest.raises(ConfigError, match=r"trimtab-platform\[tracing\]"):
        tracing.configure(TracingSpec(endpoint="http://127.0.0.1:1"), "reward", "r")


class _Collector(http.server.BaseHTTPRequestHandler):
    received: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append((self.path, self.headers.get("x-key", ""), body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Quiet."""


def test_spans_arrive_over_http() -> None:
    """A collector at http:// gets the spans as OTLP on /v1/traces, with the configured headers."""
    handler = type("Handler", (_Collector,), {"received": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        spec = TracingSpec.model_validate({"endpoint": endpoint, "headers": {"X-Key": "k"}})
        tracing.configure(spec, "reward", "r")
        with tracing.call("Score", [("traceparent", SAMPLED)]):
            pass
        tracing.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    [(path, key, body)] = handler.received
    assert (path, key) == ("/v1/traces", "k")
    assert span_names(trace_service_pb2.ExportTraceServiceRequest.FromString(body)) == ["Score"]


def test_spans_arrive_over_grpc() -> None:
    """A collector at grpc:// gets them by OTLP's own service."""
    received: list[Any] = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            received.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        tracing.configure(TracingSpec(endpoint=f"grpc://127.0.0.1:{port}"), "reward", "r")
        with tracing.call("Score", []):
            pass
        tracing.close()
    finally:
        server.stop(None).wait()
    assert [name for request in received for name in span_names(request)] == ["Score"]


def span_names(request: Any) -> list[str]:
    return [
        span.name
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_specs_do_not_show_their_headers() -> None:
    """A key in the headers is in no dump of the configuration."""
    spec = TracingSpec.model_validate({"endpoint": "http://c:4318", "headers": {"k": "hush"}})
    assert "hush" not in json.dumps(spec.model_dump(mode="json"))
