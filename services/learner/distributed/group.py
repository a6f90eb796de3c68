"""The group over torch.distributed: see services/learner/group.py for what it promises a trainer.

Two sets of connections: the data's (NCCL between GPUs, gloo between CPUs), and one over gloo for commands and small
things, on which the followers wait for as long as a batch takes to arrive.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from services.common.errors import ConfigError, Unavailable
from services.learner.algorithms.base import merged
from services.learner.critics import Critic
from services.learner.distributed.sharding import move_rest, shard_trunk
from services.learner.distributed.shares import rounds
from services.learner.distributed.weights import ShardedWeights
from services.models.master_weights import MasterWeights
from services.models.trunk import Halves

_COMMAND_TIMEOUT = timedelta(days=14)
"""A run may be paused over a holiday. A process that ends is noticed at once: its connections close."""
_BROKEN = ("gloo", "nccl", "connection closed", "connection reset", "socket timeout", "timed out waiting")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands, as torchrun says in its environment."""

    rank: int
    size: int
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Place:
        """Raises ConfigError where torchrun's variables are not all there."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        try:
            return cls(*(int(environment[name]) for name in names))
        except (KeyError, ValueError) as error:
            told = ", ".join(names)
            raise ConfigError(f"WORLD_SIZE is set, but {error}: torchrun sets {told}, all of them") from None


class TorchGroup:
    """See the module. `device`: this process' own."""

    written_out = False
    masters: Callable[..., MasterWeights] = ShardedWeights

    def __init__(self, place: Place, device: torch.device) -> None:
        self.place, self.device = place, device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=place.rank, world_size=place.size)
        self.commands: Any = dist.new_group(backend="gloo", timeout=_COMMAND_TIMEOUT)
        self.mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """See Group."""
        return self.place.size

    def shard(self, model: Any, split: Halves, critic: Critic | None) -> None:
        """See Group."""
        trunks = (
            [split.upper_half] if critic is None or critic.trunk is None else [split.upper_half, critic.trunk]
        )
        for trunk in trunks:
            shard_trunk(trunk, self.mesh)
        for module in (model, *trunks, *([] if critic is None else [critic.head])):
            move_rest(module, self.device)

    def micro_batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """See Group."""
        return rounds(lengths, self.size, token_budget)[self.place.rank]

    def whole(self, rows: Mapping[int, torch.Tensor], lengths: Sequence[int]) -> list[torch.Tensor]:
        """See Group. Every row is 0 in all processes but one, so that the sum is that one's, bit for bit."""
        pieces = torch.zeros(sum(lengths), device=self.device).split(list(lengths))
        for row, values in rows.items():
            pieces[row].copy_(values.detach())
        flat = torch.cat(pieces)
        dist.all_reduce(flat)
        return list(flat.split(list(lengths)))

    def summed(self, metrics: dict[str, float]) -> dict[str, float]:
        """See Group."""
        total: dict[str, float] = {}
        for one in self.everyones(metrics):
            merged(total, {name: torch.tensor(value, dtype=torch.float64) for name, value in one.items()})
        return total

    def everyones(self, thing: Any) -> list[Any]:
        """What each process has, by rank. Small things."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing, group=self.commands)
        return found

    def told(self, thing: Any = None) -> Any:
        """What the first process tells: its argument there, to be waited for in the others."""
        box = [thing]
        dist.broadcast_object_list(box, src=0, group=self.commands, device=torch.device("cpu"))
        return box[0]

    def in_turn(self, work: Callable[[], Any]) -> Any:
        """Done by one process of a node after the other: a node's memory holds one whole model at a time."""
        found = None
        for turn in range(self.place.local_size):
            if turn == self.place.local_rank:
                found = work()
            dist.barrier(group=self.commands)
        return found

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Unavailable, in one line, where another process has gone; its own errors pass."""
        try:
            yield
        except RuntimeError as error:
            if not _is_broken(error):
                raise
            raise Unavailable(
                f"one of the learner's {self.size} processes is gone, so all of them stop: "
                "started again, the run goes on from its last checkpoint"
            ) from error

    def leave(self) -> None:
        """Close the connections."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_broken(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _BROKEN)
