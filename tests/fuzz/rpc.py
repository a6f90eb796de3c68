"""Surfaces of RPCs: real servicers behind the real server, in this process, asked over a real channel.

Bytes are sent as they are: a client's stubs would refuse most of them. Judged: the status is one of the documented
ones, the answer parses, and a sound call is answered as at the beginning.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
from google.protobuf.message import Message

from services.common.server import Application, Endpoints, serving
from services.common.spec.service import ServiceSpec
from tests.fuzz import messages
from tests.fuzz.surface import Surface

REFUSALS = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
)
TIMEOUT_SECONDS = 120.0
"""Of wall time, on a machine that may be busy: longer is a call that hangs, and DEADLINE_EXCEEDED a finding."""
_MOST_MESSAGES = 200
Sent = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Method:
    """A method: package.Service/Name, sound requests, what it answers. `check`: more about request and answers.

    statuses: beyond REFUSALS. endless: a stream that only its caller ends.
    """

    path: str
    sound: Sequence[Message]
    answer: type[Message]
    streaming: bool = False
    endless: bool = False
    statuses: frozenset[str] = frozenset()
    check: Callable[[bytes, list[Any]], None] | None = None


class Caller:
    """Sends bytes to the methods of one service."""

    def __init__(self, address: str, methods: Sequence[Method]) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._methods = {method.path: method for method in methods}

    def close(self) -> None:
        """Let go of the channel."""
        self._channel.close()

    def draw(self, rng: Random) -> Sent:
        """A method and a request's bytes."""
        method = rng.choice(list(self._methods.values()))
        return method.path, messages.sent(rng, rng.choice(method.sound))

    def run(self, sent: Sent) -> str:
        """The status; AssertionError for one that is not documented, or an answer that is none."""
        path, data = sent
        method = self._methods[path]
        try:
            answers = self._ask(method, data)
        except grpc.RpcError as error:
            failed: Any = error
            code = failed.code().name
            assert code in REFUSALS | method.statuses, f"{path} {code}: {failed.details()}"
            assert failed.details(), f"{path} {code} says nothing"
            return f"{path.rpartition('/')[2]} {code}"
        if method.check is not None:
            method.check(data, answers)
        return f"{path.rpartition('/')[2]} OK"

    def good(self) -> None:
        """Each sound request gets an answer, unless it says "not now"."""
        for method in self._methods.values():
            for sound in method.sound:
                self._good(method, sound.SerializeToString())

    def _good(self, method: Method, data: bytes) -> None:
        try:
            answers = self._ask(method, data)
        except grpc.RpcError as error:
            failed: Any = error
            assert failed.code().name in method.statuses, (
                f"{method.path}: {failed.code().name}: {failed.details()}"
            )
        else:
            if method.check is not None:
                method.check(data, answers)

    def _ask(self, method: Method, data: bytes) -> list[Any]:
        if not method.streaming:
            raw = self._channel.unary_unary(f"/{method.path}")(data, timeout=TIMEOUT_SECONDS)
            return [method.answer.FromString(raw)]
        call = self._channel.unary_stream(f"/{method.path}")(data, timeout=TIMEOUT_SECONDS)
        answers = []
        try:
            for raw in call:
                answers.append(method.answer.FromString(raw))
                assert len(answers) < _MOST_MESSAGES, f"{method.path}: a stream without an end"
                if method.endless:
                    break
        finally:
            call.cancel()
        return answers


@contextmanager
def served(spec: ServiceSpec, application: Callable[[], Application]) -> Iterator[Endpoints]:
    """The service on a thread of its own, drained at the end."""
    started, stopping = threading.Event(), asyncio.Event()
    found, failed = list[tuple[Endpoints, asyncio.AbstractEventLoop]](), list[BaseException]()

    async def live() -> None:
        async with serving(spec, application()) as endpoints:
            found.append((endpoints, asyncio.get_running_loop()))
            started.set()
            await stopping.wait()

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:  # told to the one who waits
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    if failed:
        raise failed[0]
    [(endpoints, loop)] = found
    try:
        yield endpoints
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(30)


@contextmanager
def surface(address: str, methods: Sequence[Method], *, peak_mib: float = 256.0) -> Iterator[Surface]:
    """The surface of these methods at that address."""
    caller = Caller(address, methods)
    try:
        caller.good()
        yield Surface(caller.draw, caller.run, caller.good, peak_mib)
    finally:
        caller.close()
