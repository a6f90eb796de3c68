"""`trimtab queue`: a run's stages and dead letters, over services/common/stages/tools.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.local.layout import find_run
from orchestrator.local.options import Format
from orchestrator.local.state import read_state
from services.common.errors import NotFound, UserError
from services.common.stages.base import DeadLetter, Scan
from services.common.stages.tls_files import TlsFiles
from services.common.stages.tools import RedisTools


@dataclass(frozen=True, slots=True)
class QueueOfRun:
    """A run's queue, on its server."""

    url: str
    run_uid: str
    tls: TlsFiles

    @classmethod
    def named(cls, out: Path | None, url: str, run_uid: str, tls: TlsFiles) -> QueueOfRun:
        """By the server's URL, or of a run here. Raises UserError for half of a name, NotFound where nothing runs."""
        if bool(url) != bool(run_uid):
            raise UserError("--url and --run-uid go together")
        if url:
            return cls(url, run_uid, tls)
        layout = find_run(out)
        state = read_state(layout)
        if state is None or state.pid is None:
            raise NotFound(f"nothing runs in {layout.root}; name another server with --url and --run-uid")
        return cls(state.queue_url, state.run_uid, tls)


def show_stages(queue: QueueOfRun, output: Format) -> None:
    """Print what stands on each stage."""
    scan = asyncio.run(_scan(queue))
    rows = [
        {"stage": view.stage, "groups": view.length, "in_work": view.pending, "workers": view.consumers}
        for view in scan.stages
    ]
    if output is Format.JSON:
        print(json.dumps({"sentinel": scan.sentinel, "stages": rows}))
        return
    table = Table("stage", "groups", "in work", "workers", box=None)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    if not scan.sentinel:
        Console().print("no run is registered on this server (it may have come back empty)")


def show_dead(queue: QueueOfRun, limit: int, output: Format) -> None:
    """Print dead letters, oldest first."""
    letters = asyncio.run(_dead(queue, limit))
    rows = [
        {
            "id": letter.letter_id,
            "stage": letter.stage,
            "group": letter.group_id,
            "admission": letter.admission_number,
            "bytes": len(letter.payload),
            "reason": letter.reason,
        }
        for letter in letters
    ]
    if output is Format.JSON:
        print(json.dumps(rows))
        return
    table = Table("id", "stage", "group", "admission", "bytes", "reason", box=None)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table if rows else "no dead letters")


def requeue(queue: QueueOfRun, letters: list[str]) -> None:
    """Put letters back. Raises NotFound naming those that are not there; the others are put back."""
    missing = asyncio.run(_requeue(queue, letters))
    done = len(letters) - len(missing)
    if done:
        print(f"requeued {done}")
    if missing:
        raise NotFound(f"no dead letter {', '.join(missing)}")


@asynccontextmanager
async def _tools(queue: QueueOfRun) -> AsyncIterator[RedisTools]:
    tools = RedisTools(queue.url, queue.run_uid, tls=queue.tls)
    try:
        yield tools
    finally:
        await tools.close()


async def _scan(queue: QueueOfRun) -> Scan:
    async with _tools(queue) as tools:
        return await tools.view()


async def _dead(queue: QueueOfRun, limit: int) -> list[DeadLetter]:
    async with _tools(queue) as tools:
        return await tools.dead_letters(limit=limit)


async def _requeue(queue: QueueOfRun, letters: list[str]) -> list[str]:
    async with _tools(queue) as tools:
        return [letter for letter in letters if not await tools.requeue(letter)]
