"""Both databases, for whatever asks for `database_url`, and stores in them, whose clock the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.preference.assignment import Assignment
from services.preference.store import PreferenceStore
from tests.fakes.postgres import Postgres
from tests.unit.preference.builders import Clock


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'both.db'}"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.url()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(database_url: str, clock: Clock) -> Iterator[Callable[..., PreferenceStore]]:
    stores: list[PreferenceStore] = []

    def make(**assignment: float) -> PreferenceStore:
        how = Assignment(**assignment)  # type: ignore[arg-type]
        stores.append(PreferenceStore(database_url, lease_seconds=60, assignment=how, clock=clock))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
