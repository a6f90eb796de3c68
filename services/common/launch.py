"""Becomes another program that ends with its parent. Knows nothing but a parent's id, a signal and an argv.

    python -I -S launch.py PARENT_PID SIGNAL program argument…

A process of its own rather than subprocess' `preexec_fn`: code between fork and exec may deadlock in a
parent with threads, and gRPC has many. It costs one bare interpreter start (about 15 ms).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
CANNOT_START = 127


def launched(argv: Sequence[str], *, by: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line of `argv` as a child of this process that is sent `by` when we die.

    SIGTERM for a program that has children of its own to end.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(by)), *argv]


def die_with_parent(parent_pid: int, by: int) -> bool:
    """Ask the kernel for the signal `by` at the parent's death; false if the parent is dead already.

    Survives exec. The kernel means the parent's *thread* that forked, so start children from a thread
    that lives as long as they shall. Only Linux has it; elsewhere this only checks the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)
    return os.getppid() == parent_pid


def main(arguments: list[str]) -> int:
    """Replace this process by the program; returns only if that fails."""
    parent_pid, by, argv = int(arguments[0]), int(arguments[1]), arguments[2:]
    if not die_with_parent(parent_pid, by):
        return 1
    try:
        os.execvp(argv[0], argv)  # noqa: S606 (no shell is the point)
    except OSError as error:
        print(f"cannot start {argv[0]}: {error.strerror}", file=sys.stderr)
    return CANNOT_START


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
