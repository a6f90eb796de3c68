"""Starts, signals and waits for the program of a container. Knows no pod and no API server."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.local.queue_server import find_binary
from services.common.errors import NotFound

ROOT = Path(__file__).parents[3]
ENTER = Path(__file__).with_name("enter.py")


def image_paths() -> list[str]:
    """What stands for all images: this project and the Python that runs it, wherever they lie."""
    real = {str(path.resolve()) for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix))}
    return sorted(path for path in real if not any(path.startswith(f"{other}/") for other in real))


def image_env() -> dict[str, str]:
    """Variables of that image: this environment's programs, our modules, and a queue server if there is one."""
    places = [str(Path(sys.prefix) / "bin")]
    with contextlib.suppress(NotFound):
        places.append(str(find_binary().parent))
    named = {name: os.environ[name] for name in ("LANG", "LC_ALL", "LD_LIBRARY_PATH") if name in os.environ}
    path = os.pathsep.join([*places, os.environ.get("PATH", os.defpath)])
    return {**named, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")])}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file or folder of this machine, and where the container sees it."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All that a container's process is made of."""

    argv: Sequence[str]
    env: Mapping[str, str]
    root: Path
    """An empty folder, where its view of the file system is put together."""
    mounts: Sequence[Mount] = ()
    cwd: str = "/"
    hostname: str = "pod"
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    read_only_root: bool = False
    image: Sequence[str] = field(default_factory=image_paths)

    def to_json(self) -> bytes:
        """As enter.py reads it."""
        mounts = [
            {"source": str(one.source), "target": one.target, "readOnly": one.read_only}
            for one in self.mounts
        ]
        content = {
            "argv": list(self.argv), "env": dict(self.env), "root": str(self.root), "mounts": mounts,
            "cwd": self.cwd, "hostname": self.hostname[:63], "uid": self.uid, "gid": self.gid,
            "groups": list(self.groups), "readOnlyRoot": self.read_only_root, "image": list(self.image),
        }  # fmt: skip
        return json.dumps(content).encode()


class Process:
    """A started program."""

    def __init__(self, outer: asyncio.subprocess.Process) -> None:
        self._outer = outer

    @classmethod
    async def start(cls, launch: Launch, log: Path) -> Process:
        """From the main thread: it dies with the thread that starts it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        launch.root.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            outer = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(ENTER), str(os.getpid()),
                stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        if outer.stdin is not None:
            with contextlib.suppress(ConnectionError):
                outer.stdin.write(launch.to_json())
                await outer.stdin.drain()
            outer.stdin.close()
        return cls(outer)

    @property
    def pid(self) -> int | None:
        """Of the program itself, as this machine counts; None while it is not there."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(
                Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()[0]
            )
        return None

    async def wait(self) -> int:
        """Exit status; 128 + n for signal n."""
        code = await self._outer.wait()
        return 128 - code if code < 0 else code

    def signal(self, number: signal.Signals) -> None:
        """To the program; one that has not begun ends without having begun."""
        with contextlib.suppress(ProcessLookupError):
            if (pid := self.pid) is not None:
                os.kill(pid, number)
            elif self._outer.returncode is None:
                self._outer.kill()

    async def end(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after so many seconds; returns once it has ended."""
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._outer.wait(), max(grace, 0.0))
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._outer.wait()

    async def execute(
        self, argv: Sequence[str], env: Mapping[str, str], uid: int, gid: int
    ) -> tuple[int, str]:
        """Another program beside it, in the same view: exit status and output. For probes and hooks."""
        if (pid := self.pid) is None:
            return 1, "the container does not run"
        # Named where it is started from outside, so that a missing one is said so by nsenter.
        inside = [
            "nsenter",
            "-t",
            str(pid),
            "-m",
            "-u",
            "-p",
            "-r",
            "-w",
            "-S",
            str(uid),
            "-G",
            str(gid),
            "--",
            *argv,
        ]
        child = await asyncio.create_subprocess_exec(
            *inside, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(env),
            start_new_session=True,
        )  # fmt: skip
        try:
            told, _ = await child.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        return int(child.returncode or 0), told.decode(errors="replace")[-1000:]


def find_program(name: str, path: str) -> str | None:
    """Where a command is, as execvp would find it."""
    return name if "/" in name and os.access(name, os.X_OK) else shutil.which(name, path=path)


def namespaces_refused() -> str | None:
    """Why this process may not have namespaces of its own; None where it may. Leaves it as it is."""
    if sys.platform != "linux":
        return "only Linux has mount and process namespaces"
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(ctypes.get_errno() if libc.unshare(0x00020000 | 0x04000000 | 0x20000000) else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == 0 else f"unshare: {os.strerror(abs(code))}; run it as root"
