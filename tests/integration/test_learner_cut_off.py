"""A learner as a program of its own that is told to end before its last step: what it exits with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.local.layout import RunLayout
from orchestrator.local.queue_server import QueueServer
from orchestrator.local.services import Surroundings, choose_ports, service_config
from orchestrator.local.toml import to_toml
from tests.fakes.small_runs import ROOT, make_files, small_spec

TORCHRUN = {"PET_STANDALONE": "1", "PET_NNODES": "1", "PET_NPROC_PER_NODE": "1"}


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[RunLayout]:
    """Of a run with a queue and a model, on whose prompts nobody works."""
    make_files(tmp_path)
    made = RunLayout.prepare(tmp_path / "run", resume=False, overwrite=False)
    server = QueueServer(made.queue)
    server.start()
    (tmp_path / "queue").write_text(server.url)
    yield made
    server.stop()


def exit_code(layout: RunLayout, tmp_path: Path, module: str, event: str, status: int | None) -> int:
    """Of a learner that gets SIGTERM once it has said `event`. `status`: its setting; None: that of a local stack."""
    around = Surroundings(
        layout=layout,
        queue_url=(tmp_path / "queue").read_text(),
        run_uid=layout.run_uid(),
        ports=choose_ports(["learner"])[1],
    )
    settings = {} if status is None else {"cut_off_status": status}
    config, log = tmp_path / "learner.toml", tmp_path / "log"
    config.write_text(to_toml(service_config("learner", small_spec(tmp_path), around, settings)))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(config)],
            cwd=ROOT,
            env={**os.environ, **TORCHRUN},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        ends = time.monotonic() + 100
        while f'"{event}"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.02)
        process.terminate()
        return process.wait(60)
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("module", "event", "status", "code"),
    [
        ("services.learner", "training begins", 143, 143),
        ("services.learner", "training begins", 0, 0),
        ("services.learner", "training begins", None, 143),
        ("services.learner", "listening", 143, 143),
        ("services.learner.distributed", "training begins", 143, 143),
        ("services.learner.distributed", "training begins", 0, 0),
    ],
)
def test_sigterm_before_the_last_step(
    layout: RunLayout, tmp_path: Path, module: str, event: str, status: int | None, code: int
) -> None:
    """Neither a Job nor a supervisor must take it for success, while it loads and under torchrun too.

    Nothing is trained yet, so no checkpoint costs time.
    """
    assert exit_code(layout, tmp_path, module, event, status) == code
    assert not list(layout.root.rglob("step-*"))
