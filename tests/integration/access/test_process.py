"""A guarded service as a program of its own: what it tells of keys, what does not start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.access.keys import new_key
from services.common.server import Endpoints
from tests.fakes.certificates import Authority
from tests.integration.access.guarded import (
    SERVING,
    Keys,
    score,
)
from tests.integration.server.served import environment, until_health
from trimtab.clients.errors import (
    TrimtabClientError,
    UnauthenticatedError,
)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], Endpoints]]]:
    """Starts a service as a program of its own, with its log in pipes."""
    started: list[subprocess.Popen[str]] = []

    def start(*settings: str) -> tuple[subprocess.Popen[str], Endpoints]:
        endpoints = tmp_path / "endpoints.json"
        script = tmp_path / "program.py"
        script.write_text(
            "from services.common.entry import service_main\n"
            "service_main('reward', 'services.common.spec.service:ServiceSpec', "
            "'tests.integration.access.guarded:build')\n"
        )
        flags = [part for each in (f"endpoints_file={endpoints}", *settings) for part in ("--set", each)]
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(
            [sys.executable, str(script), *flags],
            stdout=log,
            stderr=log,
            text=True,
            env={**environment(), "GRPC_VERBOSITY": "DEBUG"},
        )
        log.close()
        started.append(process)
        for _ in range(3000):
            if endpoints.exists():
                break
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError((tmp_path / "log").read_text())
        return process, Endpoints(**json.loads(endpoints.read_text()))

    yield start
    for process in started:
        process.kill()
        process.wait()


async def test_no_key_is_ever_told(
    keys: Keys, authority: Authority, tmp_path: Path, program: Callable[..., Any]
) -> None:
    """Neither logs (gRPC's own at debug level included), nor metrics, nor errors, nor ps show a key, whether it
    was accepted or refused for any reason; the refusals are counted by reason."""
    good = keys.add("trainer", models=["hh"], rows_per_minute=2)
    old = keys.add("old", expires="2020-01-01T00:00:00Z")
    unknown = new_key()
    pair = authority.server()
    process, endpoints = program(
        f"access.keys_file={keys.path}",
        f"tls.certificate={pair.certificate}",
        f"tls.private_key={pair.private_key}",
    )
    await until_health(endpoints.health, SERVING)
    told: list[str] = []
    for key, options in (
        (good, {"rows": 2}),
        (good, {"rows": 1}),
        (good, {"rows": 3}),
        (good, {"model": "secret"}),
        (old, {}),
        (unknown, {}),
        (f"{unknown}{unknown}", {}),
    ):
        try:
            await score(endpoints.grpc, key=key, ca_file=authority.file, **options)
        except TrimtabClientError as error:
            told.append(repr(error) + str(error) + str(error.__cause__))
    with pytest.raises(UnauthenticatedError):
        await score(endpoints.grpc, key="", ca_file=authority.file)
    assert len(told) == 6
    page = await asyncio.to_thread(metrics_of, endpoints)
    for reason, count in (
        ("unknown_key", 2),
        ("expired", 1),
        ("quota", 2),
        ("model", 1),
        ("no_credentials", 1),
    ):
        assert f'trimtab_access_refused_total{{reason="{reason}"}} {count}.0' in page
    command = Path(f"/proc/{process.pid}/cmdline").read_text()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 30) == 0
    log = (tmp_path / "log").read_text()
    assert log.count('"event": "access refused"') == 7
    for key in (good, old, unknown):
        assert key not in "".join(told) + page + command + log + keys.path.read_text()
        assert key.removeprefix("tt_") not in "".join(told) + page + command + log


def metrics_of(endpoints: Endpoints) -> str:
    with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_an_unsafe_start_is_one_line(keys: Keys, tmp_path: Path) -> None:
    """The program ends with exit code 2 and the reason, before it listens anywhere."""
    keys.add()
    script = (
        "from services.common.entry import service_main\n"
        "service_main('reward', 'services.common.spec.service:ServiceSpec', 'tests.integration.access.guarded:build')"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "--set",
            "server.host=0.0.0.0",
            "--set",
            f"access.keys_file={keys.path}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment()},
    )
    assert result.returncode == 2
    assert result.stderr.startswith(
        "trimtab-reward: host 0.0.0.0 listens beyond loopback without TLS: API keys"
    )
    assert result.stderr.count("\n") == 1
