"""A service as a program of its own: its start, its signals, its exit status."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from services.common.spec.service import ServiceSpec
from tests.integration.server.served import (
    App,
    environment,
    until_health,
)


def program(tmp_path: Path, *flags: str, build: str = "build") -> list[str]:
    script = tmp_path / "program.py"
    script.write_text(
        "from services.common.entry import service_main\n"
        "service_main('reward', 'services.common.spec.service:ServiceSpec', "
        f"'tests.integration.server.test_process:{build}')\n"
    )
    return [sys.executable, str(script), *flags]


def build(_config: ServiceSpec) -> App:
    return App()


class SlowApp(App):
    """Loads for ever, on a thread that nothing can interrupt; says so in a file."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    async def start(self) -> None:
        self._marker.touch()
        await asyncio.to_thread(time.sleep, 3600)


class WorkingApp(App):
    """Waits for work of its own, which draining cancels, as a learner's training is."""

    async def start(self) -> None:
        self._work = asyncio.create_task(asyncio.Event().wait())

    async def drain(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])
        await asyncio.sleep(0.05)

    async def wait(self) -> int:
        await self._work
        return 0


def build_working(_config: ServiceSpec) -> App:
    return WorkingApp()


def build_slow(config: ServiceSpec) -> App:
    return SlowApp(Path(config.name))


def test_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """A port in use ends the program with one line that names it, and exit code 2."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = subprocess.run(
            program(tmp_path, "--set", f"server.port={port}"),
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
    assert result.returncode == 2
    assert result.stderr == f"trimtab-reward: port {port} is in use\n"


def test_an_endpoints_file_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    """The line names the field, the file and why; exit code 2."""
    (tmp_path / "file").touch()
    endpoints = tmp_path / "file" / "endpoints.json"
    result = subprocess.run(
        program(tmp_path, "--set", f"endpoints_file={endpoints}"),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"trimtab-reward: endpoints_file: {endpoints}: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("number", "build"),
    [(signal.SIGTERM, "build"), (signal.SIGINT, "build"), (signal.SIGTERM, "build_working")],
)
def test_signal_drains_and_exits_zero(tmp_path: Path, number: signal.Signals, build: str) -> None:
    """SIGTERM and SIGINT drain the service, and it exits with 0 and no trace, also one whose work is cancelled."""
    endpoints = tmp_path / "endpoints.json"
    process = subprocess.Popen(
        program(tmp_path, "--set", f"endpoints_file={endpoints}", build=build),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        _until(endpoints.exists, process)
        address = json.loads(endpoints.read_text())["health"]
        asyncio.run(until_health(address, health_pb2.HealthCheckResponse.SERVING))
        process.send_signal(number)
        _, logs = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    events = [json.loads(line) for line in logs.splitlines()]
    assert [event["event"] for event in events] == ["listening", "serving", "draining"]
    assert {event["service"] for event in events} == {"reward"}


def _until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_sigterm_while_loading_exits_at_once(tmp_path: Path) -> None:
    """A service that is told to stop while it loads exits with 0 and does not wait for its thread."""
    marker = tmp_path / "loading"
    process = subprocess.Popen(
        program(tmp_path, "--set", f"name={marker}", build="build_slow"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        _until(marker.exists, process)
        process.terminate()
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0


def test_help_is_instant(tmp_path: Path) -> None:
    """--help loads nothing heavy: no grpc, no pydantic, no numpy."""
    code = (
        "import sys, services.common.entry\n"
        "heavy = {'grpc', 'pydantic', 'numpy', 'torch', 'structlog'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
