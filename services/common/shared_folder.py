"""A folder by which one process hands files to others of its user on this machine. Knows no tensor and no service.

    publisher:  lock the folder ─▶ write aside ─▶ rename to the digest of the bytes ─▶ … ─▶ unlink
    readers:    open ─▶ is it ours, of this size? ─▶ map ─▶ verify

A file that has its name never changes. It is not written or cut in place: whoever has it mapped would read a mixture,
or die of SIGBUS. Unlinking takes nothing from those who have it mapped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from pathlib import Path

_OURS = re.compile(r"[0-9a-f]{64}(\.part)?")
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600


def take(path: Path) -> int:
    """Make the folder, be its one publisher until the descriptor is closed, remove what an earlier one left.

    Raises OSError: where it cannot be made, is another user's, or has a publisher.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=_FOLDER_MODE)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user")
        _lock(folder)
        os.fchmod(folder, _FOLDER_MODE)
        clear(folder)
        if not is_at(folder, path):
            raise FileNotFoundError(errno.ENOENT, "it was removed meanwhile")
    except BaseException:
        os.close(folder)
        raise
    return folder


def is_at(folder: int, path: Path) -> bool:
    """Whether the folder that was opened is still the one of this path."""
    try:
        there = path.lstat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(folder))


def write(folder: int, name: str, data: memoryview) -> int:
    """A file of these bytes, there whole or not at all; a descriptor to read it by. Raises OSError: full, gone."""
    aside = f"{name}.part"
    file = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE, dir_fd=folder)
    try:
        written = 0
        while written < len(data):
            written += os.write(file, data[written:])
        os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.close(file)
        unlink(folder, aside)
        raise
    return file


def opened(path: Path, size: int) -> int | None:
    """A descriptor to read a file by; None where there is none. Raises OSError unless it is ours and of this size."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size == size:
        return file
    os.close(file)
    raise OSError(errno.EINVAL, f"no file of {size} bytes of this user")


def unlink(folder: int, name: str) -> None:
    """Take a file's name away, if it has it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def clear(folder: int) -> None:
    """Unlink what publishers leave; anything else in the folder is a person's."""
    for name in os.listdir(folder):
        if _OURS.fullmatch(name):
            unlink(folder, name)


def remove(path: Path) -> bool:
    """Remove the folder and what a publisher left in it; false where one lives, or anything else lies there."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return False
        _lock(folder)
        clear(folder)
        path.rmdir()
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def _lock(folder: int) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EAGAIN, "another process hands files over there") from None
