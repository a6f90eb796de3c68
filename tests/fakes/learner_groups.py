"""Learners of several processes on this machine: each with its part of a model, over gloo, doing what a test says.

The processes are forked from one that has loaded the libraries once: without that each would take seconds to begin.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.local.ports import free_ports
from services.common.spec.run import RunSpec
from services.learner.checkpoints import Checkpoints
from services.learner.config import LearnerConfig
from services.learner.distributed.commands import Follower, Leader
from services.learner.distributed.group import Place
from services.learner.distributed.joining import Part, join, load_part

_SECONDS = 100.0


def in_group(
    processes: int, specs: Mapping[str, RunSpec], folder: Path, work: Callable[..., Any], *arguments: Any
) -> dict[str, Any]:
    """What `work(leader, part, *arguments)` returns in the first of so many processes, for each spec in turn.

    `work` is found by its module and name, and its results travel as a file in `folder`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    port, result = free_ports(1)[0], folder / f"of-{processes}.pt"
    result.unlink(missing_ok=True)
    running = [
        context.Process(
            target=_member,
            args=(Place(rank, processes, rank, processes), port, specs, result, work, arguments),
        )
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
    found: dict[str, Any] = torch.load(result, weights_only=False)
    return found


def _member(
    place: Place,
    port: int,
    specs: Mapping[str, RunSpec],
    result: Path,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {}
    group = join(LearnerConfig(run=next(iter(specs.values())), out=result.parent), place)
    for name, spec in specs.items():
        part = load_part(spec, group)
        if place.rank:
            # What is published, the first process gives back: nothing is kept here.
            Follower(part.trainer, group, part.serving, lambda state: [*state.values()].clear()).follow()
            continue
        leader = Leader(part.trainer, group, part.serving)
        found[name] = work(leader, part, *arguments)
        leader.leave()
    if not place.rank:
        torch.save(found, result)
    group.leave()


def steps(
    leader: Leader, _part: Any, batches: list[list[Any]]
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Metrics of each step, and the weights that are published after the last."""
    metrics = [leader.step(batch) for batch in batches]
    return metrics, {name: value.clone() for name, value in leader.serving_weights().items()}


def written(leader: Leader, part: Part, folder: Path) -> Path:
    """The checkpoint of a run that has not begun."""
    return Checkpoints(folder, keep=1, files=leader).write(0, part.loaded, leader.state_dict(), {"epoch": 1})


def go_on(leader: Leader, part: Part, folder: Path, batch: list[Any]) -> dict[str, Any]:
    """From the newest checkpoint a step, a checkpoint, another step, and that one again from the checkpoint."""
    kept = Checkpoints(folder / leader.trainer.spec.name, keep=3, files=leader)
    found: dict[str, Any] = {}

    def take_up() -> None:
        latest = kept.latest()
        assert latest is not None
        leader.load_state_dict(kept.read(latest)[0])

    take_up()
    found["next"] = leader.step(batch)
    found["weights"] = {name: value.clone() for name, value in leader.serving_weights().items()}
    found["path"] = kept.write(leader.step_number, part.loaded, leader.state_dict(), {"epoch": 1})
    found["after"] = leader.step(batch)
    take_up()
    found["again"] = leader.step(batch)
    return found
