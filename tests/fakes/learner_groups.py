"""Learners of several processes on this machine: each with its part of a model, over gloo, doing what a test says.

The processes are forked from one that has loaded the libraries once: without that each would take seconds to begin.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orchestrator.local.ports import free_ports
from services.common.spec.run import RunSpec
from services.learner.config import LearnerConfig
from services.learner.distributed.commands import Follower, Leader
from services.learner.distributed.group import Place
from services.learner.distributed.joining import join, load_part

Work = Callable[[Leader, Any], Any]
"""Done by the first process; of this module, or of one that can be imported by name."""
_SECONDS = 100.0


def in_group(processes: int, spec: RunSpec, folder: Path, work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(leader, part, *arguments)` returns in the first of so many processes; the others follow."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    port, result = free_ports(1)[0], folder / f"of-{processes}.pt"
    result.unlink(missing_ok=True)
    running = [
        context.Process(target=_member, args=(Place(rank, processes, rank, processes), port, spec, result, work, arguments))
        for rank in range(processes)
    ]
    for one in running:
        one.start()
    for one in running:
        one.join(_SECONDS)
    codes = [one.exitcode for one in running]
    for one in running:
        one.kill()
    assert codes == [0] * processes, codes
    return torch.load(result, weights_only=False)


def _member(
    place: Place, port: int, spec: RunSpec, result: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        group = join(LearnerConfig(run=spec, out=result.parent), place)
        part = load_part(spec, group)
        if place.rank:
            Follower(part.trainer, group, part.serving).follow()
        else:
            leader = Leader(part.trainer, group, part.serving)
            torch.save(work(leader, part, *arguments), result)
            leader.leave()
        group.leave()
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None


def steps(leader: Leader, _part: Any, batches: list[list[Any]]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Metrics of each step, and the weights that are published after the last."""
    metrics = [leader.step(batch) for batch in batches]
    return metrics, {name: value.clone() for name, value in leader.serving_weights().items()}
