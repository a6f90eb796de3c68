"""Models made ready before a run begins, in a process of their own: this one has no torch."""

from __future__ import annotations

import asyncio
import sys

from orchestrator.local.options import RunOptions
from orchestrator.planning.processes import USER_ERROR
from services.common.errors import ServiceError, UserError
from services.common.spec.run import RunSpec


async def make_ready(model: str) -> str:
    """The folder (or hub id) of a model that may have to be converted first. Raises what stood in the way."""
    return await _told(model)


async def layers_of(model: str) -> int:
    """How many layers the learner finds in a model, by its configuration. Raises UserError where it can split none."""
    return int(await _told("--layers", model))


async def fitted(spec: RunSpec, *, halved: bool) -> RunSpec:
    """The run on its model made ready, and with frozen layers that this has: it is told now, not minutes later.

    halved: it is another model than the run file's, of which the lower half is frozen, as it is of that one. Raises
    UserError for a model that the learner cannot split, or with fewer layers.
    """
    named, frozen = spec.model.path, spec.optimiser.frozen_layers
    made = await make_ready(named)
    layers = await layers_of(made)
    if frozen and halved:
        frozen = layers // 2
    if frozen >= layers:
        raise UserError(f"optimiser.frozen_layers = {frozen}, but {named} has {layers} layers")
    model = spec.model.model_copy(update={"path": made})
    optimiser = spec.optimiser.model_copy(update={"frozen_layers": frozen})
    return spec.model_copy(update={"model": model, "optimiser": optimiser})


def is_halved(options: RunOptions) -> bool:
    """Whether the command line names another model, and not how many of its layers are frozen."""
    return options.names("model.path") and not options.names("optimiser.frozen_layers")


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
