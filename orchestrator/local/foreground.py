"""`trimtab up`: a run's services in this terminal, or in a process of their own that outlives it.

Owns signals and the detached process; knows nothing of what runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.local.layout import RunLayout
from orchestrator.local.options import RunOptions
from orchestrator.local.processes import last_line
from orchestrator.local.services import check_scored, role_of
from orchestrator.local.shared_memory import remove_dead
from orchestrator.local.stack import Stack, write_spec
from orchestrator.local.state import read_state
from orchestrator.planning.processes import USER_ERROR
from services.common.errors import Expired, NotFound, ServiceError, Unavailable, UserError

PROGRAM: Sequence[str] = ("-m", "orchestrator")
"""What the detached process runs, for Python."""
TERMINATED = 128 + signal.SIGTERM
_DETACHED_SECONDS = 900.0
_DOWN_SECONDS = 90.0
_LOOK_SECONDS = 0.1
_OWN_LOG = "orchestrator"


def up(run_file: Path, options: RunOptions, services: list[str], *, detached: bool) -> int:
    """`trimtab up`: until Ctrl-C or `trimtab down`, or, detached, until all serves."""
    spec = options.load_spec(run_file)
    for service in services:
        role_of(service)
    if not services:  # who starts a reward service by name may give it a model later
        check_scored(spec)
    layout = RunLayout.prepare(options.folder(spec), resume=options.resume, overwrite=options.overwrite)
    if detached:
        write_spec(layout, spec)
        pid = detach(layout, _foreground_arguments(layout, services, tls=options.tls))
        print(f"{layout.root} is up (process {pid}); end it with: trimtab down --out {layout.root}")
        return 0
    stack = Stack(layout, spec, services or None, on_event=_say, tls=options.tls)
    code = run_until_signal(hold(stack, _say))
    # Ending `up` by `down` is how it is meant to end.
    return 0 if code == TERMINATED else code


def run_until_signal(main: Coroutine[Any, Any, int]) -> int:
    """Run to the end, or to SIGINT (KeyboardInterrupt, as asyncio does) or SIGTERM (status 143).

    Either cancels `main`, whose context managers then drain.
    """
    return asyncio.run(_with_sigterm(main))


async def _with_sigterm(main: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(main)
    terminated = asyncio.Event()

    def stop() -> None:
        terminated.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if terminated.is_set():
            return TERMINATED
        raise


async def hold(stack: Stack, say: Callable[[str], None]) -> int:
    """Enter the stack, tell each address once it serves, stay. Raises what a service failed with."""
    async with stack:
        told: set[str] = set()
        while True:
            stack.supervisor.raise_failures()
            for status in stack.status():
                if status.phase == "serving" and status.name not in told:
                    told.add(status.name)
                    say(f"{status.name} serves" + _where(stack, status.name))
            await asyncio.sleep(_LOOK_SECONDS)


def detach(layout: RunLayout, arguments: list[str]) -> int:
    """Start `trimtab arguments` in a session of its own; its process id when all serves.

    Raises what it failed with. Whatever is raised, it has ended.
    """
    log = layout.log(_OWN_LOG)
    with log.open("ab") as file:
        start = file.tell()
        process = subprocess.Popen(  # noqa: S603 (argv is ours)
            [sys.executable, *PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _until_all_serve(layout, process, log, start)
    except BaseException:
        # Nobody would know of it: it has not been announced.
        _end(process)
        raise
    return process.pid


def _until_all_serve(layout: RunLayout, process: subprocess.Popen[bytes], log: Path, start: int) -> None:
    ends = time.monotonic() + _DETACHED_SECONDS
    while time.monotonic() < ends:
        code = process.poll()
        if code is not None:
            kind = UserError if code == USER_ERROR else ServiceError
            raise kind(last_line(log, start).removeprefix("trimtab: ") or f"ended with status {code}")
        if _all_serve(layout, process.pid):
            return
        time.sleep(_LOOK_SECONDS)
    raise Expired(f"not everything served within {_DETACHED_SECONDS:g} s, so it was ended; see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it drain, as `down` does; what does not is killed, and its children with it."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_DOWN_SECONDS)
    finally:
        process.kill()
        process.wait()


def down(layout: RunLayout) -> None:
    """End the supervisor of a run, and with it everything it runs. Raises NotFound if none lives."""
    pid = layout.supervisor_pid()
    if pid is None:
        remove_dead()
        raise NotFound(f"nothing runs in {layout.root}")
    if not pid:  # the kernel takes 0 for our own process group
        raise Unavailable(f"a run is just starting in {layout.root}: ask again")
    os.kill(pid, signal.SIGTERM)
    ends = time.monotonic() + _DOWN_SECONDS
    while layout.supervisor_pid() == pid:
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)  # its children die with it
            remove_dead()
            raise Expired(f"process {pid} did not drain within {_DOWN_SECONDS:g} s and was killed")
        time.sleep(_LOOK_SECONDS)


def _all_serve(layout: RunLayout, pid: int) -> bool:
    state = read_state(layout)
    if state is None or state.pid != pid:
        return False
    return all(service.phase in ("serving", "finished") for service in state.services.values())


def _where(stack: Stack, name: str) -> str:
    try:
        return f" at {stack.endpoint(name)}"
    except NotFound:
        return ""


def _foreground_arguments(layout: RunLayout, services: list[str], *, tls: bool) -> list[str]:
    """The command line that does in the foreground what was asked to be detached.

    The spec has been resolved and the folder prepared: so it resumes what is written there.
    """
    arguments = [
        "up",
        str(layout.run_file),
        "--out",
        str(layout.root),
        "--resume",
        *(["--tls"] if tls else []),
    ]
    for service in services:
        arguments += ["--service", service]
    return arguments


def _say(line: str) -> None:
    print(line, flush=True)
