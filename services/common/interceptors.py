"""What happens around every call: who calls, admission, deadline, errors to statuses, metrics, ids in the logs.

Knows no service's messages. Health passes untouched: a full service must still say it lives. Reflection does
where access control is off; where it is on, any known caller may ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import structlog

from services.common import telemetry, tracing
from services.common.access.credentials import key_in_metadata, name_in_auth_context
from services.common.access.gate import OPEN, Gate, Permit
from services.common.access.permit import entered
from services.common.access.scopes import scope_of
from services.common.admission import Admission, Full
from services.common.errors import Expired, InvalidInput, Unavailable
from services.common.spec.service import ServerSpec
from services.common.status import WireStatus, wire_status

# Callers name the run and rollout in these; log lines of the call carry them.
RUN_KEY = "trimtab-run"
ROLLOUT_KEY = "trimtab-rollout"
_HEALTH = "/grpc.health."
_REFLECTION = "/grpc.reflection."

Handler = grpc.RpcMethodHandler
Context = grpc.aio.ServicerContext
_log = structlog.get_logger(__name__)


class CallGuard(grpc.aio.ServerInterceptor):
    """Wraps every method of the service's own servicers, unary and streaming.

    Long-lived streams (a watcher of versions) have places of their own: they must not keep questions out.
    """

    def __init__(self, spec: ServerSpec, service: str, gate: Gate) -> None:
        self._deadline_seconds = spec.default_deadline_seconds
        self._service = service
        self._gate = gate
        self._calls = Admission(spec.max_queued_calls)
        self._streams = Admission(spec.max_queued_calls)
        self.ready = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler, guarded; None (unknown method) and exempt services as they are."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_HEALTH):
            return handler
        if method.startswith(_REFLECTION) and not self._gate.on:
            return handler
        return self._guarded(handler, method.lstrip("/"))

    def _guarded(self, handler: Any, method: str) -> Any:
        behaviour = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        admission = self._streams if handler.response_streaming else self._calls
        # Decoded behind the gate: strangers cost no parsing.
        decoded = partial(
            _each_decoded if handler.request_streaming else _decoded, handler.request_deserializer
        )

        async def unary(request: Any, context: Context[Any, Any]) -> Any:
            return await self._around(
                method, admission, context, lambda: behaviour(decoded(request), context)
            )

        async def stream(request: Any, context: Context[Any, Any]) -> None:
            await self._around(
                method, admission, context, lambda: _write_all(behaviour, decoded(request), context)
            )

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(
            stream if handler.response_streaming else unary,
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    async def _around(
        self,
        method: str,
        admission: Admission,
        context: Context[Any, Any],
        work: Callable[[], Awaitable[Any]],
    ) -> Any:
        started = time.perf_counter()
        code = grpc.StatusCode.OK.name
        telemetry.CALLS_IN_FLIGHT.labels(method).inc()
        try:
            # Who calls is asked first: strangers take no places.
            with (
                telemetry.bound(**self._ids(context)),
                tracing.call(method, context.invocation_metadata() or ()),
                entered(self._permit(method, context)),
                admission.place(),
            ):
                self._check_ready()
                return await self._within_deadline(context, work)
        except asyncio.CancelledError:
            code = _cancelled_code(context)
            raise
        except grpc.aio.AbortError:
            code = "ABORTED_BY_HANDLER"
            raise
        except Exception as error:
            if _caller_is_gone(error):
                code = grpc.StatusCode.CANCELLED.name
                raise asyncio.CancelledError from error
            status = wire_status(error)
            code = status.code.name
            if not isinstance(error, Full):
                _log_failure(method, status.code.name, status.message, status.incident, error)
            await _end(context, status)
        finally:
            telemetry.CALLS_IN_FLIGHT.labels(method).dec()
            telemetry.CALLS.labels(method, code).inc()
            telemetry.CALL_SECONDS.labels(method).observe(time.perf_counter() - started)

    def _permit(self, method: str, context: Context[Any, Any]) -> Permit:
        if not self._gate.on:
            return OPEN
        return self._gate.permit(
            key_in_metadata(context.invocation_metadata()),
            name_in_auth_context(context.auth_context()),
            scope_of(method),
        )

    def _ids(self, context: Context[Any, Any]) -> dict[str, str]:
        ids = _ids(context)
        # Where strangers may come, the log says from where.
        return {**ids, "peer": context.peer()} if self._gate.on else ids

    def _check_ready(self) -> None:
        if not self.ready:
            raise Unavailable(f"{self._service} is starting")

    async def _within_deadline(self, context: Context[Any, Any], work: Callable[[], Awaitable[Any]]) -> Any:
        # A caller's own deadline is kept by gRPC, which cancels this task.
        seconds = self._deadline_seconds if context.time_remaining() is None else None
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await work()
        except TimeoutError:
            if limit.expired():
                raise Expired(f"no answer within the default deadline of {seconds:g} s") from None
            raise


def _caller_is_gone(error: Exception) -> bool:
    """Whether gRPC core could not send: the connection broke within a stream. Its error has no public name."""
    return type(error).__name__ == "ExecuteBatchError"


async def _end(context: Context[Any, Any], status: WireStatus) -> None:
    """End the call with this status. A caller whose deadline has passed by then hears nothing: that is no alarm."""
    try:
        await context.abort(status.code, status.message, status.trailing)
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        # gRPC core has ended the call meanwhile, and grpcio would log its own error with a trace.
        if context.done():
            raise asyncio.CancelledError from error
        raise


async def _write_all(behaviour: Any, request: Any, context: Context[Any, Any]) -> None:
    """Run a streaming method, whether it is a generator or writes to the context by itself."""
    produced = behaviour(request, context)
    if isinstance(produced, AsyncIterable):
        async for message in produced:
            await context.write(message)
    else:
        await produced


async def _each_decoded(deserialise: Callable[[bytes], Any] | None, requests: Any) -> AsyncIterator[Any]:
    async for request in requests:
        yield _decoded(deserialise, request)


def _decoded(deserialise: Callable[[bytes], Any] | None, request: Any) -> Any:
    """gRPC itself would answer bytes that cannot be decoded with UNKNOWN; they are the caller's mistake."""
    if deserialise is None:
        return request
    try:
        return deserialise(request)
    except Exception:  # whatever the protobuf runtime in use raises
        raise InvalidInput("the request's bytes are no message of this method's type") from None


def _ids(context: Context[Any, Any]) -> dict[str, str]:
    ids = {}
    for key, value in context.invocation_metadata() or ():
        if key in (RUN_KEY, ROLLOUT_KEY) and isinstance(value, str):
            ids[key.removeprefix("trimtab-")] = value
    return ids


def _cancelled_code(context: Context[Any, Any]) -> str:
    remaining = context.time_remaining()
    late = remaining is not None and remaining <= 0
    return (grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED).name


def _log_failure(method: str, code: str, message: str, incident: str, error: Exception) -> None:
    if incident:
        _log.error("call failed", method=method, code=code, incident=incident, exc_info=error)
    else:
        _log.info("call refused", method=method, code=code, reason=message)
