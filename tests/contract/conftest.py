"""The three servers that must behave alike."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.local.queue_server import QueueServer, find_binary
from tests.contract.harness import Harness, MemoryHarness, RedisHarness

KINDS = ["memory", "valkey9", "redis7"]


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A running server of each kind, or None for the twin in memory."""
    if request.param == "memory":
        yield None
        return
    if request.param == "redis7":
        found = shutil.which("redis-server")
        if not found:
            pytest.skip("redis-server (Debian's Redis 7) is not installed on this machine")
        binary = Path(found)
    else:
        binary = find_binary()
    made = QueueServer(tmp_path_factory.mktemp(str(request.param)), binary=binary)
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def harness(server: QueueServer | None) -> AsyncIterator[Harness]:
    """A fresh run on the server."""
    made: Harness = MemoryHarness() if server is None else RedisHarness(server, f"run-{uuid.uuid4().hex[:8]}")
    yield made
    await made.close()
