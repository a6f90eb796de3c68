"""Both databases, for whatever asks for `database_url`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'both.db'}"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.url()
