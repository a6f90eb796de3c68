"""The queue server as a child of the supervisor, beside the services. Knows no stage."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.local.health import Probe, QueueProbe
from orchestrator.local.processes import last_line
from orchestrator.local.queue_server import QueueServer


class QueueChild:
    """A QueueServer that the supervisor watches. Killed, it comes back with what its file holds."""

    def __init__(self, name: str, folder: Path, *, port: int, users: Sequence[str] = ()) -> None:
        """`port` is fixed, since the services are told its address before it runs. `users`: see QueueServer."""
        self.name = name
        self._server = QueueServer(folder, port=port, users=users)
        self.url, self.address = self._server.url, self._server.address
        at = urlsplit(self.url)
        password = None if at.password is None else unquote(at.password)
        self.probe: Probe = QueueProbe(at.hostname or "127.0.0.1", port, password)
        self._pid: int | None = None
        self._exit_code: int | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Of the running or last process."""
        return self._pid

    def start(self) -> None:
        """Start anew; returns once it answers (its file is loaded). Raises the error tree."""
        log = self._server.log_file
        self._log_start = log.stat().st_size if log.exists() else 0
        self._pid, self._exit_code = None, None
        self._server.start()
        self._pid = self._server.pid

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        if self._pid is None or self._exit_code is not None:
            return self._exit_code
        ended = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        self._exit_code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        if self._exit_code == 0:
            self._server.stop()  # also removes its socket's folder
        else:
            self._server.kill()
        return self._exit_code

    def terminate(self) -> None:
        """SIGTERM: it syncs its file and ends."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)

    def last_words(self) -> str:
        """The last line of its log."""
        return last_line(self._server.log_file, self._log_start)

    def _signal(self, number: signal.Signals) -> None:
        # Not yet reaped, so the number is still this process's.
        if self._pid is not None and self._exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)
