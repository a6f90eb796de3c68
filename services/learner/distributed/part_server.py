"""WeightService of a process that is not the first: its part of every version, on a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence

import grpc
import torch

from services.common.access.safety import is_loopback
from services.common.routes import address_towards, host_and_port
from services.common.server import join_address, serving
from services.learner.config import LearnerConfig
from services.learner.publishing import Together
from services.learner.weights import PublishedWeights
from services.models.loading import LoadedModel, frozen_names
from services.models.pairs import Fabric
from services.models.weight_servicer import SERVICE_NAME, WeightServicer
from trimtab.weights.v1 import weights_pb2_grpc

_LEAVE_SECONDS = 5.0
_ANY = ("0.0.0.0", "::")  # noqa: S104 - nothing is bound here


def told_address(listens: str, port: int, first: str) -> str:
    """What readers are told of a process that listens there. `first`: the first process' host.

    Raises OSError where there is no way to that.
    """
    if listens.strip("[]") not in _ANY:
        return join_address(listens, port)
    own = address_towards(first)
    # A name of this machine may stand for loopback, which means another machine to a reader.
    return f":{port}" if is_loopback(own) else join_address(own, port)


class _Serving:
    """See services/common/server.py Application."""

    name = "learner"

    def __init__(self, servicer: WeightServicer) -> None:
        self._servicer = servicer

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Weights, and nothing else of a learner."""
        weights_pb2_grpc.add_WeightServiceServicer_to_server(self._servicer, server)
        return [SERVICE_NAME]

    async def start(self) -> None:
        """What there is to serve comes with the first version."""

    async def drain(self) -> None:
        """Readers ask the next learner."""
        self._servicer.close()

    async def wait(self) -> int:
        """Ends with the process."""
        await asyncio.Event().wait()
        return 0


class PartServer:
    """Listens as the first process does (host, tls, access), and beside it (LearnerConfig.part_port)."""

    def __init__(self, config: LearnerConfig, device: torch.device, local_rank: int) -> None:
        self._deltas = config.deltas
        self._weights: PublishedWeights | None = None
        self._frozen: frozenset[str] = frozenset()
        ports = {"port": config.part_port(local_rank), "health_port": 0, "metrics_port": 0}
        server = config.server.model_copy(update=ports)
        self._spec = config.model_copy(update={"server": server, "endpoints_file": None})
        self._servicer = WeightServicer(Fabric.named(config.weights.fabric, str(device)))
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._listening = threading.Event()
        self._failed: BaseException | None = None
        self._address = ""
        self._thread = threading.Thread(target=self._run, name="weights-part", daemon=True)

    def start(self) -> str:
        """Listen; where readers ask: see Part. Raises what keeps it from listening."""
        self._thread.start()
        self._listening.wait()
        if self._failed is not None:
            raise self._failed
        host, port = host_and_port(self._address)
        return told_address(host, port, os.environ["MASTER_ADDR"])

    def attach(self, loaded: LoadedModel, together: Together) -> None:
        """Of this model, together with the other processes."""
        fingerprint = loaded.facts.tokenizer_fingerprint
        self._weights = PublishedWeights(
            tokenizer_fingerprint=fingerprint, deltas=self._deltas, together=together
        )
        self._frozen = frozen_names(loaded.model)
        self._servicer.attach(self._weights)

    def publish(self, state: Mapping[str, torch.Tensor]) -> None:
        """This process' part of a version, which the first process names."""
        assert self._weights is not None  # noqa: S101 - attached before anything is published
        self._weights.publish(0, 0, state, frozen=self._frozen)
        self._loop.call_soon_threadsafe(self._servicer.announce)

    def stop(self) -> None:
        """Listen no more."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(_LEAVE_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # told to the one who waits
            self._failed = error
        finally:
            self._listening.set()

    async def _live(self) -> None:
        async with serving(self._spec, _Serving(self._servicer)) as endpoints:
            self._address = endpoints.grpc
            self._listening.set()
            await self._ended.wait()
