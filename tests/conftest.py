"""What holds for every test: no model hub, one thread for torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.fakes.postgres import Postgres, postgres, programs

# Before anything imports huggingface_hub, which reads it once: no test asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Tiny matrices on many threads cost more than they bring; torch is not imported for tests without it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One server for all tests that ask for it; it is not started for others."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres() as server:
        yield server
