"""Becomes a container's program, in mount, process and host name namespaces of its own. Knows no pod.

    python -I -S enter.py PARENT_PID < launch.json

What it sees of this machine's files is read-only; what a pod mounts is laid in between, at real absolute paths. Its
root is a tmpfs: directories on the way to a mount are put together anew from their entries, all else is bound whole.

Two processes: this one waits outside and ends as the program ended; the program is process 1 of its namespace, so all
that it starts ends with it, and SIGTERM reaches it only if it has a handler, as in any container.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

NEWNS, NEWUTS, NEWPID = 0x00020000, 0x04000000, 0x20000000
RDONLY, REMOUNT, BIND, REC, PRIVATE = 1, 32, 4096, 16384, 1 << 18
DEATH_SIGNAL = 1
OWN = ("/tmp", "/proc")  # noqa: S108 never this machine's
CANNOT_START = 128
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    if _libc.mount(source.encode(), target.encode(), kind.encode() or None, flags, data.encode() or None):
        raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")


def bind(source: str, target: str, *, read_only: bool) -> None:
    """A file or folder at another place, too."""
    mount(source, target, flags=BIND | REC)
    if read_only:
        mount("none", target, flags=BIND | REMOUNT | RDONLY)


def make_root(root: str, mounts: list[dict[str, Any]], image: list[str], *, read_only: bool) -> None:
    """The container's view in the folder `root`. Each of `mounts` has source, target, readOnly."""
    mount("tmpfs", root, "tmpfs", data="mode=755")
    wanted = {path: (path, True) for path in image}
    wanted |= {_real(each["target"]): (each["source"], bool(each["readOnly"])) for each in mounts}
    on_the_way = {"/"} | {str(parent) for path in wanted for parent in Path(path).parents}
    for folder in sorted(on_the_way, key=lambda path: path.count("/") if path != "/" else -1):
        _copy_folder(root, folder, set(wanted) | on_the_way)
    for target in sorted(wanted, key=lambda path: path.count("/")):
        source, only_read = wanted[target]
        if not Path(root + target).exists():
            _make_place(source, root + target)
        bind(source, root + target, read_only=only_read)
    if not os.path.ismount(root + "/dev/shm"):  # noqa: S108
        mount("shm", root + "/dev/shm", "tmpfs", data="mode=1777,size=64m")  # noqa: S108
    if read_only:
        mount("none", root, flags=REMOUNT | BIND | RDONLY)


def _real(path: str) -> str:
    """Without links among its parents: /var/run is /run on most machines."""
    parent, _, name = path.rstrip("/").rpartition("/")
    return os.path.realpath(parent or "/").rstrip("/") + "/" + name


def _copy_folder(root: str, folder: str, elsewhere: set[str]) -> None:
    """The entries of one of this machine's folders, each bound, but for those that are seen to elsewhere."""
    Path(root + folder).mkdir(parents=True, exist_ok=True)
    if Path(folder).is_relative_to(OWN[0]) or not Path(folder).is_dir():
        return
    for entry in os.scandir(folder):
        target = root + entry.path
        if entry.path in elsewhere or os.path.lexists(target):
            continue
        if entry.path in OWN:
            Path(target).mkdir()
        elif entry.is_symlink():
            Path(target).symlink_to(Path(entry.path).readlink())
        else:
            _make_place(entry.path, target)
            bind(entry.path, target, read_only=entry.path not in ("/dev", "/sys"))


def _make_place(source: str, target: str) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    if Path(source).is_dir():
        Path(target).mkdir()
    else:
        os.mknod(target, stat.S_IFREG | 0o644)


def run(launch: dict[str, Any]) -> int:
    """The program's exit status, 128 + n for signal n."""
    if _libc.unshare(NEWNS | NEWUTS | NEWPID):
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    mount("none", "/", flags=REC | PRIVATE)
    host = launch["hostname"].encode()
    _libc.sethostname(host, len(host))
    make_root(launch["root"], launch["mounts"], launch["image"], read_only=launch["readOnlyRoot"])
    child = os.fork()
    if child == 0:
        _become(launch)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _become(launch: dict[str, Any]) -> None:
    """Never returns."""
    try:
        mount("proc", launch["root"] + "/proc", "proc")
        os.chroot(launch["root"])
        os.chdir(launch["cwd"])
        os.setgroups(launch["groups"])
        os.setgid(launch["gid"])
        os.setuid(launch["uid"])
        # After the change of user, which takes it back.
        _libc.prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        os.umask(0o022)
        os.execvpe(launch["argv"][0], launch["argv"], launch["env"])  # noqa: S606 no shell is the point
    except BaseException as error:
        print(f"cannot start {launch['argv'][0]}: {error}", file=sys.stderr, flush=True)
    os._exit(CANNOT_START)


def main() -> int:
    """Read what to become, and become it."""
    launch = json.load(sys.stdin)
    _libc.prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        return 1
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        return run(launch)
    except OSError as error:
        print(f"cannot start {launch['argv'][0]}: {error.strerror or error}", file=sys.stderr)
        return CANNOT_START


if __name__ == "__main__":
    os._exit(main())
