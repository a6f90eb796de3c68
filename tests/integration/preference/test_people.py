"""`python -m services.preference.people`: links are made, listed, renewed, revoked; only hashes are kept."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.common.errors import Unauthenticated
from services.preference import accounts
from services.preference.database import Database
from services.preference.people import app


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "preference.toml"
    path.write_text(
        f'database_url = "sqlite:///{tmp_path / "p.db"}"\n[web]\npublic_url = "https://label.example.org"\n'
    )
    return path


def run(config: Path, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*arguments, "--config", str(config)])
    return done.exit_code, done.stdout, done.stderr


def sign_in(config: Path, token: str, now: float = 0.0) -> accounts.Person:
    database = Database(f"sqlite:///{config.parent / 'p.db'}")
    try:
        return database.transaction(
            lambda session: accounts.sign_in(session, token, now=now, session_seconds=60)
        )[0]
    finally:
        database.close()


def test_a_link_is_made_once_renewed_and_revoked(config: Path) -> None:
    """A second one needs --renew, which ends the first; after revoke none opens; strangers are one clear line."""
    code, link, _ = run(config, "new", "ann", "--campaign", "spring")
    assert code == 0
    address, _, token = link.strip().partition("#")
    assert address == "https://label.example.org/join"
    person = sign_in(config, token)
    assert (person.name, person.role, person.campaign) == ("ann", "annotator", "spring")
    code, _, problem = run(config, "new", "ann")
    assert code == 2
    assert problem == "people: ann has a link already; --renew replaces it\n"
    _, link, _ = run(config, "new", "ann", "--role", "owner", "--renew")
    with pytest.raises(Unauthenticated, match="not valid"):
        sign_in(config, token)
    renewed = link.strip().partition("#")[2]
    assert sign_in(config, renewed).role == "owner"
    assert "until revoked" in run(config, "list")[1]
    assert run(config, "revoke", "ann")[0] == 0
    with pytest.raises(Unauthenticated):
        sign_in(config, renewed)
    assert "revoked" in run(config, "list")[1]
    assert run(config, "revoke", "bob") == (2, "", "people: bob: there is nobody of that name\n")
    assert run(config, "new", "bob", "--role", "king")[0] == 2


def test_an_owner_is_of_no_campaign(config: Path) -> None:
    """Who would see and export all of them is not made by an option that says one alone, nor by a renewal."""
    told = "people: campaign: an owner sees and exports all of them\n"
    assert run(config, "new", "lee", "--role", "owner", "--campaign", "a") == (2, "", told)
    assert run(config, "new", "lee", "--campaign", "a")[0] == 0
    assert run(config, "new", "lee", "--role", "owner", "--campaign", "a", "--renew") == (2, "", told)
    assert run(config, "new", "lee", "--role", "owner", "--renew")[0] == 0


def test_a_link_ends_by_itself(config: Path) -> None:
    """A link for one day opens today, not the day after tomorrow."""
    token = run(config, "new", "ann", "--expires-days", "1")[1].strip().partition("#")[2]
    assert sign_in(config, token).name == "ann"
    with pytest.raises(Unauthenticated):
        sign_in(config, token, now=4e9)


def test_no_token_is_kept(config: Path) -> None:
    """Neither the link's token nor a session's stands anywhere in the database's files."""
    token = run(config, "new", "ann")[1].strip().partition("#")[2]
    database = Database(f"sqlite:///{config.parent / 'p.db'}")
    _, secret = database.transaction(
        lambda session: accounts.sign_in(session, token, now=0, session_seconds=60)
    )
    database.close()
    files = b"".join(path.read_bytes() for path in config.parent.glob("p.db*"))
    assert token.encode() not in files
    assert secret.encode() not in files
    with sqlite3.connect(config.parent / "p.db") as connection:
        [(kept,)] = connection.execute("SELECT link_hash FROM people").fetchall()
    connection.close()
    assert kept.startswith("sha256:")
