"""What runs in the processes of a user's function: its import, its calls. Knows nothing of the service.

    service ──requests──▶ worker: the user's code, and whatever it starts
       ▲  ◀───replies──── worker
       └── has closed the requests, or died? ──▶ guard: kills the worker and all that descends from it

Guard and worker are one program that forks before it imports anything of the user's. The guard runs no code of
theirs, so that nothing they do (a loop in C, a fork, setsid) keeps it from its work. The worker dies with the
guard (PR_SET_PDEATHSIG); orphans become the guard's children (PR_SET_CHILD_SUBREAPER).

Frames in both directions: length as 4 bytes, big-endian, then JSON. Only the standard library: it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.metadata
import inspect
import io
import json
import os
import select
import signal
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

HEADER = struct.Struct(">I")
GROUP = "trimtab.rewards"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MESSAGE_LIMIT = 300


class NoFunction(Exception):
    """There is nothing of that name; its text says why."""


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
    try:
        function, identity = load(setup["name"])
    except BaseException as error:
        reason = str(error) if isinstance(error, NoFunction) else told(error)
        _write(replies, {"failed": reason})
        return
    caller = Caller(function)
    _write(replies, {"ready": identity})
    while (request := read_frame(requests)) is not None:
        reply = caller.answer(request["rows"])
        if os.getpid() != process:  # the function has forked, and this is the copy
            os._exit(0)
        _write(replies, reply)


def load(name: str) -> tuple[Callable[..., Any], dict[str, str]]:
    """The function of an entry point, or of package.module:function, and what tells it from others."""
    distribution = None
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        function: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            if not hasattr(function, part):
                raise NoFunction(f"module {module_name} has no {attribute}")
            function = getattr(function, part)
    else:
        entry = _entry_point(name)
        distribution = entry.dist
        function = entry.load()
    if not callable(function):
        raise NoFunction(f"{name} is a {type(function).__name__}, not a function")
    return function, _identity(name, function, distribution)


def _entry_point(name: str) -> importlib.metadata.EntryPoint:
    points = list(importlib.metadata.entry_points(group=GROUP))
    matching = [point for point in points if point.name == name]
    if len(matching) == 1:
        return matching[0]
    there = ", ".join(sorted({point.name for point in points})) or "none"
    if matching:
        raise NoFunction(f"{len(matching)} distributions have an entry point {name} of group {GROUP}")
    raise NoFunction(
        f"there is no entry point {name} of group {GROUP} (there are: {there}); a function may also be "
        "written package.module:function"
    )


def _identity(
    name: str, function: Any, distribution: importlib.metadata.Distribution | None
) -> dict[str, str]:
    """Name, source file's SHA-256, distribution and version: changes when the function's code does."""
    inner = inspect.unwrap(function)
    module = sys.modules.get(getattr(inner, "__module__", None) or "")
    file = Path(getattr(module, "__file__", None) or "")
    source = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    if distribution is None and {"site-packages", "dist-packages"} & set(file.parts):
        top = getattr(inner, "__module__", "").partition(".")[0]
        names = importlib.metadata.packages_distributions().get(top, [])
        distribution = importlib.metadata.distribution(names[0]) if names else None
    version = f"{distribution.name} {distribution.version}" if distribution else ""
    qualified = f"{getattr(inner, '__module__', '')}:{getattr(inner, '__qualname__', '')}"
    return {"name": name, "function": qualified, "source": source, "distribution": version}


class Caller:
    """Calls the function as TRL does: everything by keyword, each a list with one element for each row."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._runner: asyncio.Runner | None = None
        try:
            self._parameters: Sequence[inspect.Parameter] | None = list(
                inspect.signature(function).parameters.values()
            )
        except (TypeError, ValueError):  # a builtin
            self._parameters = None

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """{"values": [number or text of an error]}, {"missing": [columns]}, {"raised": text} or {"wrong": text}."""
        available = _arguments(rows)
        missing = self._missing(available)
        if missing:
            return {"missing": missing}
        try:
            result = self._call(available)
            return checked(result, len(rows))
        except BaseException as error:
            return {"raised": told(error)}

    def _missing(self, available: Mapping[str, Any]) -> list[str]:
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [
            parameter.name
            for parameter in self._parameters or ()
            if parameter.kind in named
            and parameter.default is inspect.Parameter.empty
            and parameter.name not in available
        ]

    def _call(self, available: Mapping[str, Any]) -> Any:
        parameters = self._parameters
        if parameters is not None and not any(
            each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters
        ):
            available = {each.name: available[each.name] for each in parameters if each.name in available}
        result = self._function(**available)
        return self._awaited(result) if inspect.isawaitable(result) else result

    def _awaited(self, result: Any) -> Any:
        import asyncio

        async def wait() -> Any:
            return await result

        # One loop for all calls: clients that the function keeps belong to it.
        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(wait())


def _arguments(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns that a row lacks are None there. Names of our own win over columns of that name."""
    names = dict.fromkeys(name for row in rows for name in row["columns"])
    arguments: dict[str, list[Any]] = {name: [row["columns"].get(name) for row in rows] for name in names}
    arguments["prompts"] = [row["prompt"] for row in rows]
    arguments["completions"] = [row["completion"] for row in rows]
    arguments["messages"] = [
        [{"role": role, "content": content} for role, content in row["messages"]] for row in rows
    ]
    return arguments


def checked(result: Any, count: int) -> dict[str, Any]:
    """A number, or the text of an error, for each row; {"wrong": …} for what is no list of that length."""
    if hasattr(result, "tolist"):  # numpy, torch
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        return {"wrong": f"returned {_kind(result)}, expected a list of {count} numbers"}
    if len(result) != count:
        return {"wrong": f"returned {len(result)} values for {count} rows"}
    return {"values": [_number(value) for value in result]}


def _number(value: Any) -> float | str:
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, (str, bytes)) or (
        not hasattr(value, "__float__") and not hasattr(value, "__index__")
    ):
        return f"returned {_kind(value)} for this row, expected a number"
    return float(value)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def told(error: BaseException) -> str:
    """An exception in one line, with the place that raised it."""
    try:
        text = " ".join(str(error).split())[:_MESSAGE_LIMIT]
    except Exception:
        text = ""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


if __name__ == "__main__":
    code = main()
    os._exit(code)
