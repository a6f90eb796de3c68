"""A PostgreSQL server of our own, with a fresh database for each test. Debian's package postgresql is enough."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USER = "postgres"  # of the package; PostgreSQL does not run as root
_TEMPLATE = "ours"


def programs() -> Path | None:
    """Where initdb and postgres are; None where PostgreSQL cannot be started."""
    if os.geteuid() == 0 and _USER not in {user.pw_name for user in pwd.getpwall()}:
        return None
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return next((path for path in reversed(folders) if (path / "postgres").exists()), None)


class Postgres:
    """A running server. Each url() is another database, whose tables are there already."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def server_url(self, name: str) -> str:
        """The URL of a database of that name."""
        return f"postgresql+psycopg://trimtab@/{name}?host={self._folder}"

    def empty(self) -> str:
        """A database without tables."""
        return self._create("template1")

    def url(self) -> str:
        """A database with our tables and nothing in them."""
        return self._create(_TEMPLATE)

    def prepare(self) -> None:
        """Make our tables once, to be copied."""
        from services.preference.database import Database

        self._execute(f"CREATE DATABASE {_TEMPLATE}")
        Database(self.server_url(_TEMPLATE)).close()

    def _create(self, template: str) -> str:
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.server_url(name)

    def _execute(self, command: str) -> None:
        import psycopg

        with psycopg.connect(
            host=str(self._folder), user="trimtab", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(command.encode())


@contextmanager
def postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A server until the end of the block. durable: it syncs to disk as it does when installed."""
    binaries = programs()
    assert binaries is not None
    user = _USER if os.geteuid() == 0 else None
    # A socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tt-pg-", dir="/tmp"))
    try:
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = folder / "data"
        subprocess.run(
            [
                binaries / "initdb",
                "-D",
                data,
                "-A",
                "trust",
                "-U",
                "trimtab",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
            ],
            check=True,
            capture_output=True,
            user=user,
        )
        settings = ["-c", "listen_addresses="]
        if not durable:
            settings += ["-c", "fsync=off", "-c", "full_page_writes=off"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, *settings],
                stderr=log,
                stdout=log,
                user=user,
            )
        try:
            server = Postgres(folder)
            _wait(folder, process)
            server.prepare()
            yield server
        finally:
            process.send_signal(signal.SIGINT if durable else signal.SIGQUIT)
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    ends = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(host=str(folder), user="trimtab", dbname="postgres").close()
        except psycopg.OperationalError:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < ends, (folder / "log").read_text()
            time.sleep(0.02)
        else:
            return
