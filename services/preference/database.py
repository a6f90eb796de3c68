"""Owns connections and transactions, SQLite's settings, the database's errors as our own. Knows no row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from services.common.errors import (
    ConfigError,
    Corrupted,
    ServiceError,
    StorageFull,
    TrimtabError,
    Unavailable,
)
from services.preference.migrating import migrate

Result = TypeVar("Result")
_NO_WAIT = text("SET LOCAL synchronous_commit TO off")  # PostgreSQL
_BUSY_MILLISECONDS = 10_000
_CONNECTIONS = 4  # of one process; more would only wait for each other in Python


class Database:
    """One database with our tables, made or brought up to date at opening. Runs work in transactions."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        self._readings = sessionmaker(
            self._engine.execution_options(trimtab_reads=True), expire_on_commit=False
        )
        # What may be lost with the machine (never with the process) waits for no disk.
        self._hasty_engine = open_engine(url, sync=False) if self._is_sqlite else self._engine
        self._hasty_sessions = sessionmaker(self._hasty_engine, expire_on_commit=False)
        try:
            migrate(self._engine)
        except TrimtabError:
            self.close()
            raise
        except SQLAlchemyError as error:
            self.close()
            raise storage_error(error) from error

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    @property
    def threads(self) -> int:
        """How many transactions are worth running at a time: SQLite has one writer."""
        return 1 if self._is_sqlite else _CONNECTIONS

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()
        self._hasty_engine.dispose()

    def transaction(self, work: Callable[[Session], Result], *, durable: bool = True) -> Result:
        """What `work` returns, committed. It runs once more if another one wrote the same key first.

        `durable`: on disk on return. Without it, a power cut (no kill) may undo it: for leases.
        """
        try:
            return self._once(work, durable)
        except IntegrityError:
            pass
        except SQLAlchemyError as error:
            raise storage_error(error) from error
        try:
            return self._once(work, durable)
        except SQLAlchemyError as error:
            raise storage_error(error) from error

    def read(self, work: Callable[[Session], Result]) -> Result:
        """What `work` returns, which changes nothing. It waits for no writer, and no writer for it."""
        try:
            with self._readings.begin() as session:
                return work(session)
        except SQLAlchemyError as error:
            raise storage_error(error) from error

    def _once(self, work: Callable[[Session], Result], durable: bool) -> Result:
        with (self._sessions if durable else self._hasty_sessions).begin() as session:
            if not durable and not self._is_sqlite:
                session.execute(_NO_WAIT)
            return work(session)


def parse_url(given: str) -> URL:
    """A database URL. ConfigError for one that cannot be used; passwords never appear in it."""
    try:
        url = make_url(given)
    except ArgumentError:
        raise ConfigError("expected a database URL such as sqlite:///preference.db") from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError("expected a database file: what is recorded must outlive the process")
    return url


def open_engine(given: str, *, sync: bool = True) -> Engine:
    """The engine of a URL. `sync`: SQLite waits for the disk at each commit.

    ConfigError where the URL or its driver is unknown.
    """
    url = parse_url(given)
    try:
        engine = create_engine(url)
    except (ArgumentError, ImportError) as error:
        told = _one_line(error)
        raise ConfigError(
            f"database {url.drivername}: {told}: expected sqlite:///… or postgresql+psycopg://…"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", functools.partial(_configure_sqlite, sync))
        event.listen(engine, "begin", _begin)
    return engine


def storage_error(error: SQLAlchemyError) -> ServiceError:
    """The error of the tree that says what the database said."""
    told = _one_line(getattr(error, "orig", None) or error)
    if "disk is full" in told or "No space left" in told:
        return StorageFull(f"the database has no room: {told}")
    if "malformed" in told or "not a database" in told:
        return Corrupted(f"the database is damaged: {told}")
    return Unavailable(f"the database cannot be used: {told}")


def _one_line(error: object) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _configure_sqlite(sync: bool, connection: Any, _: object) -> None:
    # The driver's own transactions begin late, at the first write: ours begin where the session says.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # With WAL, NORMAL may lose the last commits when the machine stops; FULL syncs each of them.
    cursor.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
    cursor.close()


def _begin(connection: Any) -> None:
    # The write lock first: a read that turns into a write could otherwise fail with "database is locked".
    reads = connection.get_execution_options().get("trimtab_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
