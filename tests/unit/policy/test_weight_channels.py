"""A reader of weights and the connection it reads on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from services.policy.config import WeightSourceSpec
from services.policy.weights import WeightReader


async def test_a_damaged_connection_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the learner is away it is kept; after an answer that no service gives there is another one."""
    codes = iter([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL])
    stubs: list[Any] = []
    done = asyncio.Event()

    async def follow(_reader: WeightReader, stub: Any) -> None:
        stubs.append(stub)
        if (code := next(codes, None)) is not None:
            raise AioRpcError(code, Metadata(), Metadata(), "no status received")
        done.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(WeightReader, "_follow", follow)
    policy: Any = SimpleNamespace(snapshot=lambda: None)
    store: Any = SimpleNamespace(add=lambda _snapshot: None)
    source = WeightSourceSpec(address="127.0.0.1:1", retry_seconds=0.01)
    reading = asyncio.create_task(WeightReader(policy, source, "run", store=store).run())
    await asyncio.wait_for(done.wait(), 30)
    reading.cancel()
    first, kept, second, third = stubs
    assert first is kept
    assert len({id(first), id(second), id(third)}) == 3
