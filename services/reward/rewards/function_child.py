"""The processes of a user's function, from inside. Owns how they end; knows nothing of the service and of functions.

    service ──requests──▶ worker: the user's code, and whatever it starts
       ▲  ◀───replies──── worker
       └── has closed the requests, or died? ──▶ guard: kills the worker and all that descends from it

Guard and worker are one program that forks before it imports anything of the user's. The guard runs no code of
theirs, so that nothing they do (a loop in C, a fork, setsid) keeps it from its work. The worker dies with the
guard (PR_SET_PDEATHSIG); orphans become the guard's children (PR_SET_CHILD_SUBREAPER).

Frames in both directions: length as 4 bytes, big-endian, then JSON. Run by its path, and only the standard library
at first: what is imported from where is the service's to say, in the first frame.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import select
import signal
import struct
import sys
from pathlib import Path
from typing import Any

HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


# ------------------------------------------------------------------ the two processes


def main() -> int:
    """Arguments: the file descriptors of requests and replies. The exit status is the worker's, 128 + its signal."""
    requests, replies = int(sys.argv[1]), int(sys.argv[2])
    _process_control(_PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    worker = os.fork()
    if worker == 0:
        try:
            _become_worker(guard)
            serve(requests, replies)
        finally:
            os._exit(0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(worker, worker)  # in both processes: whoever comes first
    os.close(replies)
    code = _watch(worker, requests)
    _kill_descendants(worker)
    return code


def _become_worker(guard: int) -> None:
    os.setpgid(0, 0)
    _process_control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:  # it died before it was watched
        os._exit(1)
    # What a function prints goes to the service's log, never into its answers.
    with contextlib.suppress(OSError):
        os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _process_control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _watch(worker: int, requests: int) -> int:
    """Wait until the worker has ended or nobody can send requests any more; the worker's exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the service ends first, and closes the requests
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poller = select.poll()
    poller.register(requests, 0)  # only its hang-up, which is always told
    poller.register(woken, select.POLLIN)
    while (code := _reaped(worker)) is None:
        if any(place == requests for place, _ in poller.poll()):
            return 128 + signal.SIGKILL
        os.read(woken, 4096)
    return code


def _reaped(worker: int) -> int | None:
    """Reap whatever has ended; the worker's exit code if it has."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 1
        if ended == 0:
            return None
        if ended == worker:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _kill_descendants(worker: int) -> None:
    """Kill children until there are none: what they leave behind becomes ours in turn."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> list[int]:
    own = str(os.getpid())
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            # pid (name) state parent …; a name may hold brackets and blanks.
            if stat.read_text(errors="replace").rpartition(")")[2].split()[1] == own:
                found.append(int(stat.parent.name))
    return found


# ------------------------------------------------------------------ frames


def read_frame(source: int) -> Any:
    """The next message; None at the end."""
    header = _read(source, HEADER.size)
    if header is None:
        return None
    body = _read(source, HEADER.unpack(header)[0])
    return None if body is None else json.loads(body)


def _read(source: int, size: int) -> bytes | None:
    parts = []
    while size > 0:
        part = os.read(source, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode_frame(message: Any) -> bytes:
    """A message as bytes."""
    body = json.dumps(message).encode()
    return HEADER.pack(len(body)) + body


def _write(target: int, message: Any) -> None:
    data = memoryview(encode_frame(message))
    while data:
        data = data[os.write(target, data) :]


# ------------------------------------------------------------------ the worker


def serve(requests: int, replies: int) -> None:
    """Import the function that the first message names, then answer calls until there are no more."""
    process = os.getpid()
    setup = read_frame(requests)
    if setup is None:
        return
    sys.path[:] = setup["path"]
    sys.path.append(str(Path.cwd()))
    from services.reward.rewards.function_call import FunctionCaller, NoFunction, load, told

    try:
        function, identity = load(setup["name"])
    except BaseException as error:
        reason = str(error) if isinstance(error, NoFunction) else told(error)
        _write(replies, {"failed": reason})
        return
    caller = FunctionCaller(function)
    _write(replies, {"ready": identity})
    while (request := read_frame(requests)) is not None:
        reply = caller.answer(request["rows"], trl=request.get("convention") == "trl")
        if os.getpid() != process:  # the function has forked, and this is the copy
            os._exit(0)
        _write(replies, reply)


if __name__ == "__main__":
    code = main()
    os._exit(code)
