"""Owns bringing a database's tables up to date. Knows no row.

Decision: a service does it by itself when it opens a database, in one transaction; replicas that start together
wait for each other. Rejected: a command to run beforehand, which a laptop's user would have to know of.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from services.common.errors import ConfigError

HEAD = "0003"  # the newest file in migrations/versions
_FOLDER = Path(__file__).with_name("migrations")
_LOCK = 7_244_861_355  # of PostgreSQL's advisory locks, for this program


def migrate(engine: Engine) -> None:
    """Make or change the tables as this program needs them. ConfigError for a database that is newer."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        found = _revision(connection)
        if found != HEAD:
            _upgrade(connection, found)


def _revision(connection: Connection) -> str:
    """The revision of the tables there, empty where there are none. "0001" had no mark of Alembic's."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")) or "")
    if "schema" in tables:
        version = connection.scalar(text("SELECT version FROM schema")) or 0
        return f"{version:04d}"
    return ""


def _upgrade(connection: Connection, found: str) -> None:
    # Half a second to import, and needed once for a database.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found and found not in known:
        raise ConfigError(
            f"the database has schema {found}, this program reads schema {HEAD}: use its own version"
        )
    config.attributes["connection"] = connection
    if found and "alembic_version" not in inspect(connection).get_table_names():
        command.stamp(config, found)
    command.upgrade(config, HEAD)
