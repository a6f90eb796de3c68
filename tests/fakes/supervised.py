"""A program that supervises two fake services until it is killed: python -m tests.fakes.supervised FOLDER"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from orchestrator.local.processes import ManagedProcess
from orchestrator.local.supervisor import Supervisor


async def supervise(folder: Path) -> None:
    """Start both, say so in a file, wait for ever."""
    async with Supervisor() as supervisor:
        for name in ("one", "two"):
            supervisor.want(fake(folder, name, *(("--deaf",) if name == "two" else ())))
        for name in ("one", "two"):
            await supervisor.until_serving(name, 60)
        (folder / "ready").touch()
        await asyncio.Event().wait()


def fake(folder: Path, name: str, *flags: str, endpoints: bool = True) -> ManagedProcess:
    """A managed fake service with a journal, a log and an endpoints file in `folder`."""
    file = folder / f"{name}.endpoints.json"
    return ManagedProcess(
        name,
        [
            sys.executable,
            "-m",
            "tests.fakes.service",
            "--name",
            name,
            "--journal",
            str(folder / "journal"),
            *(("--endpoints", str(file)) if endpoints else ()),
            *flags,
        ],
        log=folder / "logs" / f"{name}.log",
        endpoints_file=file if endpoints else None,
        cwd=Path(__file__).parents[2],
    )


if __name__ == "__main__":
    asyncio.run(supervise(Path(sys.argv[1])))
