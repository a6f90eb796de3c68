"""Two models that read the same rows: what one says bounds what the other may draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from services.policy.engines.runners import Runner, Started


class PairedRunner:
    """Two models over the same rows: logits are the first one's, `second_logits` the other's.

    States are those of both, side by side. Rows come and go in both together.
    """

    def __init__(self, first: Runner, second: Runner) -> None:
        self._first, self._second = first, second
        self._width = 0

    def refresh(self) -> None:
        """See Runner."""
        self._first.refresh()
        self._second.refresh()

    def reserve(self, rows: int, sizes: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self._first.reserve(rows, sizes)
        self._second.reserve(rows, sizes)

    def drop(self, place: int) -> None:
        """See Runner."""
        self._first.drop(place)
        self._second.drop(place)

    def forget(self) -> None:
        """See Runner."""
        self._first.forget()
        self._second.forget()

    def join(self, started: Sequence[Started], copies: Sequence[int]) -> torch.Tensor:
        """See Runner."""
        return self._side_by_side(self._first.join(started, copies), self._second.join(started, copies))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Runner."""
        return self._side_by_side(self._first.step(tokens), self._second.step(tokens))

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """See Runner."""
        return self._first.logits(states[:, : self._width])

    def second_logits(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] of the second model."""
        return self._second.logits(states[:, self._width :])

    def _side_by_side(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        self._width = first.shape[1]
        return torch.cat([first, second], 1)
