"""A learner, a replica and a slow link between them, each its own process: from `publish` to `applied`.

    learner: PublishedWeights, WeightServicer ──▶ throttled proxy ──▶ replica: WeightReader, Policy, the real engine

All clocks are the machine's monotonic one. The proxy limits what the learner sends and counts it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.weights_steps import MODEL, Record
from services.common.allocator import keep_freed_memory
from services.common.spec.service import LogSpec
from services.common.telemetry import configure_logging

CONTEXT = multiprocessing.get_context("spawn")
PIECE = 1 << 16
SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Sync:
    """One version's way: seconds in publish, from its beginning to applied, and bytes over the link."""

    publish_seconds: float
    seconds: float
    size: int


def quiet_logs() -> None:
    """Warnings on stderr; stdout belongs to the result."""
    configure_logging(LogSpec(level="warning"), "benchmark", "weights")


class Proxy:
    """Passes TCP on to an address; what comes back is counted, and limited to `rate` bytes a second (0: not)."""

    def __init__(self, address: str, rate: float) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._rate = rate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self._next = 0.0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            inner, _ = self._listener.accept()
            outer = socket.create_connection(self._target)
            for one, other, limited in ((inner, outer, False), (outer, inner, True)):
                threading.Thread(target=self._pass, args=(one, other, limited), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, limited: bool) -> None:
        try:
            while data := source.recv(PIECE):
                if limited:
                    self._take_turn(len(data))
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()

    def _take_turn(self, size: int) -> None:
        """As on a wire: a piece leaves when those before it have left."""
        with self._lock:
            self.sent += size
            if not self._rate:
                return
            self._next = max(self._next, time.monotonic()) + size / self._rate
            wait = self._next - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def syncs(record: Record, steps: int, rate: float, *, deltas: bool) -> list[Sync]:
    """The first steps of the record, one after the other over a link of `rate` bytes a second."""
    with (
        learner(record, steps) as (ask, address),
        proxy(address, rate) as (meter, near),
        replica(near, deltas=deltas) as applied,
    ):
        # Version 0 has the bytes that the replica loaded, so it costs a manifest.
        _publish(ask)
        _received(applied)
        results = []
        for _ in range(steps):
            before = _sent(meter)
            began, published = _publish(ask)
            results.append(Sync(published - began, _received(applied) - began, _sent(meter) - before))
        return results


def _publish(ask: Connection) -> tuple[float, float]:
    ask.send("publish")
    answer: tuple[float, float] = _received(ask)
    return answer


def _sent(meter: Connection) -> int:
    meter.send("sent")
    return int(_received(meter))


def _received(pipe: Connection) -> Any:
    if not pipe.poll(SECONDS):
        raise RuntimeError("benchmarks.weights: a process did not answer")
    return pipe.recv()


@contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[Connection]:
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    try:
        yield here
    finally:
        process.terminate()
        process.join()


@contextmanager
def learner(record: Record, steps: int) -> Iterator[tuple[Connection, str]]:
    """Publishes the next version when asked; (pipe, address)."""
    few = Record(record.start, record.steps[:steps])
    with _process(_learner_main, few) as pipe:
        yield pipe, _received(pipe)


@contextmanager
def proxy(address: str, rate: float) -> Iterator[tuple[Connection, str]]:
    """(pipe, the near end's address)."""
    with _process(_proxy_main, address, rate) as pipe:
        yield pipe, _received(pipe)


@contextmanager
def replica(address: str, *, deltas: bool) -> Iterator[Connection]:
    """Tells the time whenever it has applied a version."""
    with _process(_replica_main, address, deltas) as pipe:
        yield pipe


def _proxy_main(pipe: Connection, address: str, rate: float) -> None:
    made = Proxy(address, rate)
    pipe.send(made.address)
    while True:
        pipe.recv()
        pipe.send(made.sent)


def _learner_main(pipe: Connection, record: Record) -> None:
    keep_freed_memory()
    quiet_logs()
    asyncio.run(_learn(pipe, chain([record.start], record.states())))


async def _learn(pipe: Connection, states: Iterable[Any]) -> None:
    from services.common.server import serving
    from services.common.spec.service import ServiceSpec
    from services.learner.weights import PublishedWeights

    weights = PublishedWeights(tokenizer_fingerprint="")
    application = WeightsAlone(weights)
    async with serving(ServiceSpec(), application) as where:
        pipe.send(where.grpc)
        for step, state in enumerate(states):
            await asyncio.to_thread(pipe.recv)
            began = time.monotonic()
            await asyncio.to_thread(weights.publish, 1, step, state)
            application.servicer.announce()
            pipe.send((began, time.monotonic()))
        await asyncio.Event().wait()


class WeightsAlone:
    """A learner's WeightService without its run; see services/common/server.py Application."""

    name = "learner"

    def __init__(self, weights: Any) -> None:
        from services.learner.weight_servicer import WeightServicer

        self.servicer = WeightServicer()
        self.servicer.attach(weights)

    def register(self, server: Any) -> Sequence[str]:
        """Add the servicer."""
        from services.learner.weight_servicer import SERVICE_NAME
        from trimtab.weights.v1 import weights_pb2_grpc

        weights_pb2_grpc.add_WeightServiceServicer_to_server(self.servicer, server)
        return [SERVICE_NAME]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        """End the watchers' streams."""
        self.servicer.close()

    async def wait(self) -> int:
        """Not by itself."""
        await asyncio.Event().wait()
        return 0


def _replica_main(pipe: Connection, address: str, deltas: bool) -> None:
    keep_freed_memory()
    quiet_logs()
    asyncio.run(_follow(pipe, address, deltas))


async def _follow(pipe: Connection, address: str, deltas: bool) -> None:
    from services.common.spec.service import ModelSpec
    from services.models.loading import load_causal
    from services.policy.config import WeightSourceSpec
    from services.policy.engines.transformers_engine import TransformersEngine
    from services.policy.generation import Policy
    from services.policy.weights import WeightReader

    loaded = load_causal(ModelSpec(path=MODEL, dtype="bfloat16"))
    policy = Policy(TransformersEngine(loaded), loaded.tokenizer)
    spec = WeightSourceSpec(address=address, deltas=deltas, retry_seconds=0.05)
    offered = asyncio.Event()
    reader = asyncio.create_task(WeightReader(policy, spec, "", held=offered.set).run())
    while not reader.done():
        await offered.wait()
        offered.clear()
        await asyncio.to_thread(policy.apply_offered)
        pipe.send(time.monotonic())
