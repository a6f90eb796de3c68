"""Somebody labels while the preference service's disk is full, and while it is killed: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.local.ports import free_ports
from tests.chaos import disk
from tests.chaos.invariants import clear_lines, labels_kept
from tests.chaos.labels import Labels


@contextmanager
def service(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """One process over the folder's database, killed at the end."""
    flags = [f"database_url=sqlite:///{folder}/p.db", f"server.port={port}", "server.health_port=0"]
    flags += ["server.metrics_port=0"]
    command = [
        sys.executable,
        "-m",
        "services.preference",
        *(part for one in flags for part in ("--set", one)),
    ]
    with (folder / "log").open("ab") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


async def more(labels: Labels, count: int) -> None:
    """Wait for so many more acknowledged comparisons."""
    wanted = labels.count + count
    async with asyncio.timeout(60):
        while labels.count < wanted:  # noqa: ASYNC110 - the service is another process
            await asyncio.sleep(0.05)


async def test_labels_outlive_a_full_disk_and_a_kill(tmp_path: Path) -> None:
    """Refused and tried again while there is no room, there after a kill, none twice; no traceback in the log."""
    [port] = free_ports(1)
    labels = Labels(f"127.0.0.1:{port}", tmp_path / "labels.jsonl")
    labelling = asyncio.create_task(labels.run())
    try:
        with service(tmp_path, port) as process:
            await more(labels, 2)
            disk.fill(process.pid, disk.room_of(tmp_path / "log"))
            await asyncio.sleep(0.5)  # what is being answered is answered
            before = labels.count
            await asyncio.sleep(1.0)
            assert labels.count == before
            disk.free(process.pid)
            await more(labels, 2)
        with service(tmp_path, port):
            await more(labels, 2)
            labelling.cancel()
            there, items = await labels.there()
    finally:
        labelling.cancel()
    assert labels.wrong == []
    assert labels_kept(labels.sent, labels.acknowledged, there, uploaded=labels.uploaded, items=items) == []
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == labels.count >= 6
    assert all(json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines())
    assert clear_lines("preference", (tmp_path / "log").read_text().splitlines()) == []
