"""The supervisor with real programs that serve real gRPC health."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.local.health import read_endpoints
from orchestrator.local.supervisor import Supervisor
from orchestrator.planning.processes import Limits, Restart
from services.common.errors import AlreadyExists, Expired, NotFound, ServiceError, UserError
from tests.fakes.supervised import fake

ROOT = Path(__file__).parents[2]
QUICK = Limits(backoff_first_seconds=0.1, backoff_most_seconds=0.4, drain_seconds=10)


async def until(holds: Callable[[], bool], seconds: float = 30, told: Callable[[], str] = lambda: "") -> None:
    """Wait on a condition, at most so long. `told`: what to say where it never holds."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"waited in vain\n{told()}"
        await asyncio.sleep(0.02)


def journal(folder: Path) -> list[str]:
    """What the fakes noted, without process ids."""
    return [line.rsplit(" ", 1)[0] for line in (folder / "journal").read_text().splitlines()]


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_serves_restarts_after_kill_and_drains(tmp_path: Path) -> None:
    """A service that is killed comes back with the same flags; at the end it drains by SIGTERM."""
    told: list[str] = []
    async with Supervisor(limits=QUICK, on_event=told.append) as supervisor:
        supervisor.want(fake(tmp_path, "one"))
        await supervisor.until_serving("one", 60)
        before = supervisor.status()[0]
        assert before.phase == "serving"
        assert before.restarts == 0
        assert read_endpoints(tmp_path / "one.endpoints.json") is not None
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        await until(lambda: supervisor.status()[0].restarts == 1)
        await supervisor.until_serving("one", 60)
        after = supervisor.status()[0]
        assert after.pid != before.pid
        assert "one was killed by signal 9" in told[0]
    assert journal(tmp_path) == ["started one", "serving one"] * 2 + ["draining one", "ended one"]
    assert after.pid is not None
    assert not alive(after.pid)


async def test_backoff_grows(tmp_path: Path) -> None:
    """Each failure in a row doubles the pause before the next start; a success ends it."""
    told: list[str] = []
    limits = Limits(backoff_first_seconds=0.1, backoff_most_seconds=0.2)
    async with Supervisor(limits=limits, on_event=told.append) as supervisor:
        supervisor.want(fake(tmp_path, "one", "--fail", "not yet", "--fail-times", "3"))
        await supervisor.until_serving("one", 60)
        assert supervisor.status()[0].restarts == 3
    pauses = [line.rsplit("back-off ", 1)[1] for line in told if "back-off" in line]
    assert pauses == ["0.1 s", "0.2 s", "0.2 s"]


async def test_crash_loop_is_given_up_with_the_last_line(tmp_path: Path) -> None:
    """After five fast failures the supervisor stops trying and tells what the log said last."""
    async with Supervisor(limits=QUICK) as supervisor:
        supervisor.want(fake(tmp_path, "one", "--fail", "the disk is upside down"))
        with pytest.raises(ServiceError) as caught:
            await supervisor.until_serving("one", 60)
        assert "one: given up, it failed 5 times in a row" in str(caught.value)
        assert str(caught.value).endswith("the disk is upside down")
        assert supervisor.status()[0].phase == "failed"
        with pytest.raises(ServiceError):
            supervisor.raise_failures()
    assert journal(tmp_path) == ["started one"] * 5


async def test_configuration_mistake_is_not_tried_again(tmp_path: Path) -> None:
    """Exit status 2 is the user's mistake: one start, one line."""
    async with Supervisor(limits=QUICK) as supervisor:
        supervisor.want(fake(tmp_path, "one", "--fail", "fake.toml:3: port: wrong", "--fail-with", "2"))
        with pytest.raises(UserError, match=r"^one: fake.toml:3: port: wrong$"):
            await supervisor.until_serving("one", 60)
    assert journal(tmp_path) == ["started one"]


async def test_port_in_use_is_told(tmp_path: Path) -> None:
    """A port that somebody else listens on gives one clear line, not a crash loop."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        async with Supervisor(limits=QUICK) as supervisor:
            supervisor.want(fake(tmp_path, "one", "--port", str(port)))
            with pytest.raises(UserError, match=f"port {port} is in use"):
                await supervisor.until_serving("one", 60)


async def test_program_that_is_not_there(tmp_path: Path) -> None:
    """A program that cannot be started is told by name."""
    process = fake(tmp_path, "one", endpoints=False)
    process.argv = ("/no/such/program",)
    async with Supervisor(limits=QUICK) as supervisor:
        supervisor.want(process, restart=Restart.NEVER)
        assert await supervisor.until_ended("one", 60) == 127
        assert supervisor.status()[0].message == "cannot start /no/such/program: No such file or directory"


async def test_unwritable_log_is_told(tmp_path: Path) -> None:
    """A log that cannot be written is the process's failure, not the supervisor's."""
    (tmp_path / "logs").write_text("a file where the folder should be")
    async with Supervisor(limits=QUICK) as supervisor:
        supervisor.want(fake(tmp_path, "one"))
        with pytest.raises(ServiceError, match="cannot be started: File exists"):
            await supervisor.until_serving("one", 60)


async def test_drain_order_and_bound(tmp_path: Path) -> None:
    """Lower ranks end before higher ones are asked; one that ignores SIGTERM is killed after the bound."""
    limits = Limits(drain_seconds=1.0)
    async with Supervisor(limits=limits) as supervisor:
        supervisor.want(fake(tmp_path, "queue"), drain_rank=2)
        supervisor.want(fake(tmp_path, "policy"), drain_rank=1, needs=["queue"])
        supervisor.want(fake(tmp_path, "learner", "--deaf"), drain_rank=0, needs=["queue"])
        for name in ("queue", "policy", "learner"):
            await supervisor.until_serving(name, 60)
        assert journal(tmp_path)[:2] == ["started queue", "serving queue"]
        pids = [status.pid for status in supervisor.status()]
        begun = time.monotonic()
    assert time.monotonic() - begun >= 1.0
    assert journal(tmp_path)[-4:] == ["draining policy", "ended policy", "draining queue", "ended queue"]
    assert not any(alive(pid) for pid in pids if pid is not None)


async def test_hanging_service_is_killed_and_restarted(tmp_path: Path) -> None:
    """A process that stops answering its health port is replaced."""
    told: list[str] = []
    limits = Limits(backoff_first_seconds=0.1, silent_seconds=6.0)
    async with Supervisor(limits=limits, on_event=told.append) as supervisor:
        supervisor.want(fake(tmp_path, "one"))
        await supervisor.until_serving("one", 60)
        pid = supervisor.status()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: supervisor.status()[0].restarts == 1, 40)
        await supervisor.until_serving("one", 60)
    assert told[0] == "one is killed: its health port was silent for 6 s"


async def test_finished_run_is_not_restarted(tmp_path: Path) -> None:
    """A learner that ends with 0 has finished; its exit status is given."""
    async with Supervisor(limits=QUICK) as supervisor:
        supervisor.want(fake(tmp_path, "one", "--end-after", "0.1"), restart=Restart.ON_FAILURE)
        assert await supervisor.until_ended("one", 60) == 0
        assert supervisor.status()[0].phase == "finished"
    assert journal(tmp_path) == ["started one", "serving one"]


async def test_taken_away_and_added_again(tmp_path: Path) -> None:
    """One process can be drained alone, and one of its name started anew."""
    async with Supervisor(limits=QUICK) as supervisor:
        supervisor.want(fake(tmp_path, "one"))
        await supervisor.until_serving("one", 60)
        with pytest.raises(AlreadyExists):
            supervisor.want(fake(tmp_path, "one"))
        supervisor.unwant("one")
        await supervisor.until_gone("one")
        assert supervisor.status() == []
        with pytest.raises(NotFound):
            await supervisor.until_serving("one", 1)
        supervisor.want(fake(tmp_path, "one"))
        await supervisor.until_serving("one", 60)


async def test_waiting_is_bounded(tmp_path: Path) -> None:
    """A service that never serves does not hold up its caller for ever."""
    async with Supervisor(limits=QUICK) as supervisor:
        process = fake(tmp_path, "one")
        process.argv = (sys.executable, "-c", "import time; time.sleep(600)")
        supervisor.want(process)
        with pytest.raises(Expired, match=r"one did not serve within 0.2 s"):
            await supervisor.until_serving("one", 0.2)


async def test_no_orphan_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    """kill -9 of the supervisor takes its children along, even one that ignores SIGTERM."""
    command = [sys.executable, "-m", "tests.fakes.supervised", str(tmp_path)]
    supervisor = subprocess.Popen(command, cwd=ROOT)  # noqa: ASYNC220 (returns at once)
    try:
        await until((tmp_path / "ready").exists, 60)
        lines = (tmp_path / "journal").read_text().splitlines()
        pids = [int(line.split()[-1]) for line in lines if line.startswith("serving")]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        supervisor.kill()
        supervisor.wait(10)
        await until(lambda: not any(alive(pid) for pid in pids), 10)
    finally:
        supervisor.kill()
        supervisor.wait(10)


async def test_nothing_a_service_started_outlives_it(tmp_path: Path) -> None:
    """When a service dies, what it had started itself dies with its process group."""
    async with Supervisor(limits=QUICK) as supervisor:
        supervisor.want(fake(tmp_path, "one", "--grandchild"), restart=Restart.NEVER)
        await supervisor.until_serving("one", 60)
        lines = (tmp_path / "journal").read_text().splitlines()
        grandchild = next(int(line.split()[-1]) for line in lines if line.startswith("grandchild"))
        assert alive(grandchild)
        pid = supervisor.status()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not alive(grandchild), 10)
