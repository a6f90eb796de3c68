"""A run's folder: which file lies where, who may use it. Knows nothing of what the files say.

runs/<name>/
  run.toml            the spec as resolved
  run_uid             names the run's keys in the queue; survives a resume
  endpoints.json      who listens where, with process ids
  supervisor.lock     held by the living supervisor; its process id is inside
  config/             <service>.toml and <service>.endpoints.json
  logs/               <service>.log, and what was set aside of it: <service>.log.1, .2
  redis/              the queue server's append-only file
  tls/                certificates of a run with --tls
  checkpoints/ rollouts/ metrics.jsonl tensorboard/ report.html summary.json
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import AlreadyExists, NotFound, UserError

_MARKS = ("run_uid", "endpoints.json", "summary.json")
"""A folder with any of these can be looked at as a run's. Only one with `run_uid` is ever emptied: nobody
but us makes that file, while a person may well keep their own run.toml beside their work."""

_LOCK_SECONDS, _LOCK_PAUSE_SECONDS = 1.0, 0.01


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Paths below one run's folder."""

    root: Path

    @classmethod
    def prepare(cls, root: Path, *, resume: bool = False, overwrite: bool = False) -> RunLayout:
        """Make the folder ready for a run.

        Raises AlreadyExists for a used folder without `resume` or `overwrite` (or while a run is going
        on there), NotFound if there is nothing to resume, UserError if overwriting would delete
        something that is not a run.
        """
        layout = cls(root.absolute())
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other")
        if root.exists() and not root.is_dir():
            raise UserError(f"{root} is not a folder")
        used = root.is_dir() and bool(list(root.iterdir()))
        pid = layout.supervisor_pid() if used else None
        if pid is not None:
            who = f"process {pid}" if pid else "just starting"
            raise AlreadyExists(
                f"a run is going on in {root} ({who}); end it with: trimtab down --out {root}"
            )
        if resume and not layout.uid_file.exists():
            raise NotFound(f"{root} holds no run to resume")
        if used and not resume:
            layout._clear(overwrite)
        layout._make_folders()
        return layout

    @classmethod
    def existing(cls, root: Path) -> RunLayout:
        """The layout of a folder that holds a run. Raises NotFound."""
        layout = cls(root.absolute())
        if not layout.is_run():
            raise NotFound(f"{root} is not a run's folder")
        return layout

    def is_run(self) -> bool:
        """Whether it looks like a run's folder."""
        return any((self.root / mark).exists() for mark in _MARKS)

    @property
    def run_file(self) -> Path:
        """The spec as resolved."""
        return self.root / "run.toml"

    @property
    def uid_file(self) -> Path:
        """The run's uid."""
        return self.root / "run_uid"

    @property
    def endpoints_file(self) -> Path:
        """Who listens where."""
        return self.root / "endpoints.json"

    @property
    def lock_file(self) -> Path:
        """Held by the living supervisor."""
        return self.root / "supervisor.lock"

    @property
    def config(self) -> Path:
        """The services' configurations."""
        return self.root / "config"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.root / "logs"

    @property
    def queue(self) -> Path:
        """The queue server's folder."""
        return self.root / "redis"

    @property
    def tls(self) -> Path:
        """Certificates, where the services speak mTLS."""
        return self.root / "tls"

    @property
    def checkpoints(self) -> Path:
        """The learner's checkpoints."""
        return self.root / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """One JSON line per step."""
        return self.root / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        """The run's figures."""
        return self.root / "summary.json"

    @property
    def report_file(self) -> Path:
        """The page for people."""
        return self.root / "report.html"

    def service_config(self, name: str) -> Path:
        """The configuration file of a service."""
        return self.config / f"{name}.toml"

    def service_endpoints(self, name: str) -> Path:
        """Where a service writes the addresses it listens on."""
        return self.config / f"{name}.endpoints.json"

    def log(self, name: str) -> Path:
        """The log of a process."""
        return self.logs / f"{name}.log"

    def log_files(self) -> list[Path]:
        """The logs of all processes, the queue server's too; not what was set aside of them."""
        return [*self.logs.glob("*.log"), *self.queue.glob("server.log")]

    def log_name(self, file: Path) -> str:
        """Whose log it is."""
        return "queue" if file.parent == self.queue else file.stem

    def run_uid(self) -> str:
        """The run's uid; made at the first call, so that a resume finds its keys again."""
        if not self.uid_file.exists():
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.root.name)[:40]
            write_private(self.uid_file, f"{name}-{secrets.token_hex(4)}")
        return self.uid_file.read_text(encoding="ascii").strip()

    def supervisor_pid(self) -> int | None:
        """The process id of the living supervisor, None if there is none; 0: it has not written its own yet."""
        try:
            with self.lock_file.open(encoding="ascii") as file:
                try:
                    # Shared: who only looks is not taken for a supervisor by the next who looks.
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0)
        except FileNotFoundError:
            return None
        return None

    def _clear(self, overwrite: bool) -> None:
        if not overwrite:
            raise AlreadyExists(f"{self.root} is used already: --resume continues it, --overwrite empties it")
        if not self.uid_file.exists():
            raise UserError(f"{self.root} is not empty and not a run's folder: it is left as it is")
        # Whoever has begun to run here since we looked keeps the folder.
        with SupervisorLock(self):
            for path in set(self.root.iterdir()) - {self.lock_file}:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _make_folders(self) -> None:
        for folder in (self.root, self.config, self.logs, self.queue):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.config, self.queue):
            folder.chmod(0o700)  # they hold the queue's password and data
        self.run_uid()


@dataclass(slots=True)
class SupervisorLock:
    """Says that a supervisor lives here. The kernel lets go of it however the supervisor ends."""

    layout: RunLayout
    _fd: int | None = field(default=None)

    def __enter__(self) -> SupervisorLock:
        """Raises AlreadyExists if another supervisor holds it."""
        fd = os.open(self.layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _locked(fd):
            os.close(fd)
            raise AlreadyExists(f"another supervisor runs in {self.layout.root}")
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._fd = fd
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def _locked(fd: int) -> bool:
    """Take the lock; those who only look hold it for a moment, and are waited out."""
    ends = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                return False
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return True


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by this user alone."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)


def find_run(given: Path | None, runs: Path = Path("runs")) -> RunLayout:
    """The folder named, or the one where a supervisor lives, or the latest. Raises NotFound."""
    if given is not None:
        return RunLayout.existing(given)
    folders = sorted(runs.iterdir(), key=lambda path: path.stat().st_mtime) if runs.is_dir() else []
    layouts = [RunLayout(path.absolute()) for path in folders if RunLayout(path).is_run()]
    if not layouts:
        raise NotFound(f"no run in {runs}/; name its folder with --out")
    living = [layout for layout in layouts if layout.supervisor_pid() is not None]
    return (living or layouts)[-1]
