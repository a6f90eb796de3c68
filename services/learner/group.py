"""The processes that train one model together, as one of them sees them: a port, and its twin of one process.

    every process has the whole batch ─▶ passes its own rows, in rounds ─▶ log-probs of all rows, everywhere
                                                                       ─▶ gradients are summed, metrics too

What a loss is divided by is counted over the whole batch before anything is dealt out, so sums over processes are what
one process alone would have. distributed/ has the adapter over torch.distributed; nothing else knows that there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from services.learner.critics import Critic
from services.models.encoder_decoder import Row
from services.models.master_weights import MasterWeights
from services.models.packing import micro_batches
from services.models.trunk import Halves


class Group(Protocol):
    """What a trainer asks of its group. Every method is called by all processes alike."""

    @property
    def size(self) -> int:
        """Processes."""
        ...

    @property
    def written_out(self) -> bool:
        """Whether layers may be passed without being called: not where they gather their weights then."""
        ...

    @property
    def masters(self) -> Callable[..., MasterWeights]:
        """Makes the optimiser."""
        ...

    def shard(self, model: Any, split: Halves, critic: Critic | None) -> None:
        """Divide what is trained of the policy, and of a critic's own trunk."""
        ...

    def micro_batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """Places of the rows that this process passes, a list for each round.

        All processes have the same number of rounds. An empty one: this process has no row left, and runs along.
        """
        ...

    def whole(self, rows: Mapping[int, torch.Tensor], lengths: Sequence[int]) -> list[torch.Tensor]:
        """Row after row, each [length] without gradient, from those that the processes have; `lengths` of all rows."""
        ...

    def summed(self, metrics: dict[str, float]) -> dict[str, float]:
        """A minibatch's metrics from those of its parts, as algorithms/base.py merges them."""
        ...


class OneProcess:
    """Nothing to divide, nothing to wait for."""

    size = 1
    written_out = True
    masters: Callable[..., MasterWeights] = MasterWeights

    def shard(self, model: Any, split: Halves, critic: Critic | None) -> None:
        """See Group."""

    def micro_batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """See Group: never an empty one."""
        return micro_batches(lengths, token_budget)

    def whole(self, rows: Mapping[int, torch.Tensor], lengths: Sequence[int]) -> list[torch.Tensor]:
        """See Group."""
        return [rows[row] for row in range(len(lengths))]

    def summed(self, metrics: dict[str, float]) -> dict[str, float]:
        """See Group."""
        return metrics


ALONE = OneProcess()


def run_along(split: Halves, critic: Critic | None = None) -> torch.Tensor:
    """One state through the trained layers, counted as nothing: 0 with a graph, for a round without a row.

    The layers' weights are gathered and their gradients reduced by all processes or by none.
    """
    head = split.upper_half.get_input_embeddings().weight
    one: list[Row] = [(np.zeros(1, np.int32), np.zeros(0, np.int32))]
    states = split.upper_rows([torch.zeros(1, head.shape[1], dtype=head.dtype, device=head.device)], one)
    total = states.float().sum()
    if critic is not None and critic.trunk is not None:
        total = total + critic.states(states, one).float().sum()
    return total * 0.0
