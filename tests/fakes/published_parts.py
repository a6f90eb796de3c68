"""Several processes that publish one version together, as threads of one: for tests of parts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from services.learner.distributed.group import Place
from services.learner.distributed.publishing import InParts
from services.learner.weights import PublishedWeights
from services.models.manifest import Version

State = dict[str, torch.Tensor]


@dataclass
class Exchange:
    """What TorchGroup gives: everyone's thing by rank, at a meeting of all."""

    size: int
    things: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = threading.Barrier(self.size, timeout=30)

    def of(self, rank: int, thing: Any) -> list[Any]:
        self.things[rank] = thing
        self._all.wait()
        found = [self.things[one] for one in range(self.size)]
        self._all.wait()
        return found


class Member:
    """One process' side of a group."""

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self._exchange, self.place = exchange, Place(rank, exchange.size)
        self.size = exchange.size

    def everyones(self, thing: Any) -> list[Any]:
        return self._exchange.of(self.place.rank, thing)

    def unbroken(self) -> Any:
        import contextlib

        return contextlib.nullcontext()


class Processes:
    """So many stores. `addresses`: where each is asked; the first one's is empty."""

    def __init__(
        self, state: State, addresses: Sequence[str], *, fingerprint: str, deltas: bool = True
    ) -> None:
        exchange, sizes = Exchange(len(addresses)), {name: one.nbytes for name, one in state.items()}
        self._threads = ThreadPoolExecutor(max_workers=len(addresses))

        def made(rank: int) -> PublishedWeights:
            together = InParts(Member(exchange, rank), sizes, addresses[rank])  # type: ignore[arg-type]
            return PublishedWeights(tokenizer_fingerprint=fingerprint, deltas=deltas, together=together)

        self.stores = list(self._threads.map(made, range(len(addresses))))

    def publish(self, epoch: int, step: int, state: State) -> Version:
        """All at once; the others do not know where the first one stands."""

        def one(rank: int) -> tuple[Version, bool]:
            at = (epoch, step) if rank == 0 else (0, 0)
            return self.stores[rank].publish(*at, state)

        versions = {version for version, _ in self._threads.map(one, range(len(self.stores)))}
        [version] = versions
        return version
