"""Becomes another program that dies with its parent. Knows nothing but a parent's id and an argv.

    python -I -S launch.py PARENT_PID program argument…

A process of its own rather than subprocess' `preexec_fn`: code between fork and exec may deadlock in a
parent with threads, and gRPC has many. It costs one bare interpreter start (about 15 ms).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CANNOT_START = 127


def die_with_parent(parent_pid: int) -> bool:
    """Ask the kernel for SIGKILL at the parent's death; false if the parent is dead already.

    Survives exec. The kernel means the parent's *thread* that forked, so start children from a thread
    that lives as long as they shall. Only Linux has it; elsewhere this only checks the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent_pid


def main(arguments: list[str]) -> int:
    """Replace this process by the program; returns only if that fails."""
    parent_pid, argv = int(arguments[0]), arguments[1:]
    if not die_with_parent(parent_pid):
        return 1
    try:
        os.execvp(argv[0], argv)  # noqa: S606 (no shell is the point)
    except OSError as error:
        print(f"cannot start {argv[0]}: {error.strerror}", file=sys.stderr)
    return CANNOT_START


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
