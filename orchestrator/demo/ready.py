"""Models made ready before a run begins, in a process of their own: this one has no torch."""

from __future__ import annotations

import asyncio
import sys

from orchestrator.planning.processes import USER_ERROR
from services.common.errors import ServiceError, UserError


async def make_ready(model: str) -> str:
    """The folder (or hub id) of a model that may have to be converted first. Raises what stood in the way."""
    return await _told(model)


async def layers_of(model: str) -> int:
    """How many layers the learner finds in a model, by its configuration. Raises UserError where it can split none."""
    return int(await _told("--layers", model))


async def _told(*arguments: str) -> str:
    """The last line of `python -m services.models`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.models",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:  # we are being ended
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = err.decode(errors="replace").strip().splitlines() or ["it could not be loaded"]
        raise (UserError if process.returncode == USER_ERROR else ServiceError)(lines[-1])
    return out.decode().strip().splitlines()[-1]
