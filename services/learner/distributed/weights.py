"""The optimiser over shards: each process updates its own rows of every sharded tensor, in float32.

A sharded parameter is float32 itself (FSDP2 casts what it gathers), and its local rows are the master. Parameters that
are trained but not sharded (the last norm, a value head) stand whole in every process; their gradients are summed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from services.models.master_weights import MasterWeights


class ShardedWeights(MasterWeights):
    """See MasterWeights; the same step on any number of processes, up to the order of sums."""

    def step(self, rate_factor: float = 1.0) -> float:
        """See MasterWeights. Called by all processes alike; the norm is that of the whole gradient."""
        self._sum_replicated()
        return super().step(rate_factor)

    def accumulate(self) -> None:
        """See MasterWeights. What is sharded has been reduced in the backward pass."""
        for parameter, master in self._pairs:
            if master is parameter or parameter.grad is None:
                continue
            gradient = _local(parameter.grad).float()
            master.grad = gradient if master.grad is None else master.grad + gradient
            parameter.grad = None

    def cast(self) -> None:
        """See MasterWeights. A shard's master is the shard."""
        with torch.no_grad():
            for parameter, master in self._copies():
                parameter.copy_(master)

    def matches(self) -> bool:
        """See MasterWeights."""
        return all(torch.equal(parameter, master.to(parameter.dtype)) for parameter, master in self._copies())

    def sharded(self) -> list[DTensor | None]:
        """In the masters' order: the sharded parameter, or None for one that every process has."""
        return [parameter if isinstance(parameter, DTensor) else None for parameter, _ in self._pairs]

    def _master(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        if not isinstance(parameter, DTensor):
            return super()._master(parameter)
        master = torch.nn.Parameter(parameter.to_local().detach())
        self._pairs.append((parameter, master))
        return master

    def _copies(self) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        return [
            (parameter, master)
            for parameter, master in self._pairs
            if master is not parameter and not isinstance(parameter, DTensor)
        ]

    def _replicated(self) -> list[torch.nn.Parameter]:
        return [master for parameter, master in self._pairs if not isinstance(parameter, DTensor)]

    def _sum_replicated(self) -> None:
        """Gradients that only some processes have (one had no row to value) are 0 in the others; none stays none."""
        masters = self._replicated()
        if not masters:
            return
        device = masters[0].device
        there = torch.tensor([float(one.grad is not None) for one in masters], device=device)
        dist.all_reduce(there)
        for master, count in zip(masters, there.tolist(), strict=True):
            if count:
                if master.grad is None:
                    master.grad = torch.zeros_like(master)
                dist.all_reduce(master.grad)

    def _clip(self, masters: list[torch.nn.Parameter], largest: float) -> float:
        """By the norm over all processes: shards are added up, what every process has counts once."""
        replicated = {id(one) for one in self._replicated()}
        squares: list[Any] = [0.0, 0.0]
        for master in masters:
            assert master.grad is not None  # noqa: S101 - as the caller chose them
            whole = id(master) in replicated
            squares[whole] = squares[whole] + torch.linalg.vector_norm(master.grad, dtype=torch.float64) ** 2
        sharded = torch.as_tensor(squares[False], dtype=torch.float64, device=masters[0].device).clone()
        dist.all_reduce(sharded)
        norm = math.sqrt(float(sharded) + float(squares[True]))
        factor = largest / (norm + 1e-6)
        if factor < 1:
            for master in masters:
                master.grad.mul_(factor)  # type: ignore[union-attr]
        return norm


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
