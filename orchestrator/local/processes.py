"""One managed process: how it is started, asked to end, killed, and what its log said last.

Knows nothing of when any of that should happen: that is planning/processes.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from orchestrator.local.health import AliveProbe, GrpcProbe, Probe
from services.common.launch import launched

_TAIL_BYTES = 16_384
# How a service's program begins its line; whoever tells it on names the process.
_PROGRAM = re.compile(r"^trimtab-[a-z]+: ")


class Child(Protocol):
    """What the supervisor needs of anything it supervises."""

    name: str
    probe: Probe

    def start(self) -> None:
        """Start anew. Raises OSError or the error tree if that cannot be."""
        ...

    @property
    def pid(self) -> int | None:
        """Of the running or last process."""
        ...

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to drain."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def last_words(self) -> str:
        """The last line that this incarnation logged; empty if none."""
        ...


class ManagedProcess:
    """A program in its own process group whose output goes to a log file and that dies with us.

    Start it from the main thread: the kernel ties the child to the thread that started it.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        endpoints_file: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.log = log
        self.endpoints_file = endpoints_file
        self.probe: Probe = AliveProbe() if endpoints_file is None else GrpcProbe(endpoints_file)
        self._env = dict(env or {})
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> None:
        """Start anew, appending to the log. Raises OSError if the machine refuses."""
        if self.endpoints_file is not None:
            # The addresses of the one before would be taken for the new one's.
            self.endpoints_file.unlink(missing_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 (argv is ours)
                launched(self.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._env},
                cwd=self._cwd,
                process_group=0,
            )

    @property
    def pid(self) -> int | None:
        """Of the running or last process."""
        return None if self._process is None else self._process.pid

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs. Nothing it started outlives it."""
        if self._process is None or self._process.returncode is not None:
            return None if self._process is None else self._process.returncode
        pid = self._process.pid
        # Left unreaped for a moment, the process keeps its group's number from being given away.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return self._process.poll()

    def terminate(self) -> None:
        """SIGTERM to the process alone: it knows how to end what it started."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to its whole group."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The last line that this incarnation logged, without its program's name; empty if none."""
        return _PROGRAM.sub("", last_line(self.log, self._log_start))


def last_line(log: Path, start: int = 0) -> str:
    """The last line of a log from byte `start` on, as a person would want it told."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            # One that was emptied since (log_files.py) holds later lines alone.
            file.seek(max(start if start <= end else 0, end - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((plain_line(line.strip()) for line in reversed(lines) if line.strip()), "")


def plain_line(line: str) -> str:
    """A log line for people: a structured one is shortened to its event and error."""
    if not line.startswith("{"):
        return line
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    told = [str(entry[key]).splitlines()[-1] for key in ("event", "error", "exception") if entry.get(key)]
    return ": ".join(told) or line
