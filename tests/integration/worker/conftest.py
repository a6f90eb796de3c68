"""A queue server for all tests of a module, and a run on it for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from orchestrator.local.queue_server import QueueServer
from tests.integration.worker.kit import Run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueServer]:
    made = QueueServer(tmp_path_factory.mktemp("redis"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def run(server: QueueServer) -> AsyncIterator[Run]:
    made = Run(server.url)
    await made.learner.start_epoch(at_least=0)
    yield made
    await made.learner.close()
