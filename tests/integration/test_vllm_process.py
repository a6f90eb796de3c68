"""A vLLM server that the policy started ends with it, however and whenever that ends. The server is a stand-in."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.errors import ServiceError, Unavailable
from services.policy.application import PolicyApplication
from services.policy.config import PolicyConfig
from services.policy.engines.choice import open_engine
from tests.fakes.processes import is_running, until
from tests.fakes.tiny_models import make_tiny_causal

ROOT = Path(__file__).parents[2]
# Notes its process id, then answers every GET with a status, or (0) not at all.
SERVER = """
import http.server, os, pathlib, sys, time
status, port = int(sys.argv[2]), int(sys.argv[sys.argv.index("--port") + 1])
pathlib.Path(sys.argv[1] + ".new").write_text(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
if not status:
    time.sleep(600)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else status)
        self.send_header("content-length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""
PARENT = """
import sys, time
from services.policy.engines.vllm_server import VllmServer
server = VllmServer(sys.argv[1:], "model", dtype="float32")
time.sleep(600)
"""


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the server notes its process id. Temporary files go beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "pid"


def command(noted: Path, status: int) -> list[str]:
    return [sys.executable, "-c", SERVER, str(noted), str(status)]


def config(tmp_path: Path, noted: Path, status: int) -> PolicyConfig:
    folder = make_tiny_causal(tmp_path / "tiny")
    return PolicyConfig.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32", "threads": 1},
            "engine": {
                "kind": "vllm",
                "command": command(noted, status),
                "weights_folder": str(tmp_path / "weights"),
            },
        }
    )


def pid_of(noted: Path) -> int:
    until(noted.exists, "the server's start")
    return int(noted.read_text())


def left(tmp_path: Path) -> list[Path]:
    """What should be gone: the server's log, folders of weights."""
    return [*(tmp_path / "tmp").iterdir(), *(tmp_path / "weights").iterdir()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_a_policy_that_is_killed(noted: Path, number: signal.Signals) -> None:
    """Killed, or ended without a word, before the server answered: the kernel ends the server."""
    policy = subprocess.Popen([sys.executable, "-c", PARENT, *command(noted, 0)], cwd=ROOT)
    try:
        server = pid_of(noted)
        assert os.getpgid(server) == os.getpgid(policy.pid)
    finally:
        policy.send_signal(number)
        policy.wait()
    until(lambda: not is_running(server), "the server's end")


async def test_draining_ends_a_server_that_is_still_loading(tmp_path: Path, noted: Path) -> None:
    """SIGTERM while vLLM loads: drain() ends it, though there is no engine yet; nothing is left of it."""
    application = PolicyApplication(config(tmp_path, noted, 0))
    loading = asyncio.create_task(application.start())
    server = await asyncio.to_thread(pid_of, noted)
    assert is_running(server)
    loading.cancel()
    await application.drain()
    assert not is_running(server)
    until(lambda: not left(tmp_path), "the last of it")


def test_a_server_that_is_no_use_is_ended(tmp_path: Path, noted: Path) -> None:
    """It comes up but does not say what it serves: the error is told, the server is gone."""
    with pytest.raises(ServiceError, match="vllm answered 500"):
        open_engine(config(tmp_path, noted, 500))
    assert not is_running(pid_of(noted))
    assert not left(tmp_path)


def test_a_server_that_ends_while_it_starts_is_told(tmp_path: Path, noted: Path) -> None:
    """Its last words are in the error, and its log is gone."""
    settings = config(tmp_path, noted, 0)
    engine = settings.engine.model_copy(
        update={"command": [sys.executable, "-c", "raise SystemExit('no GPU')"]}
    )
    with pytest.raises(Unavailable, match="ended while it started: no GPU"):
        open_engine(settings.model_copy(update={"engine": engine}))
    assert not left(tmp_path)
