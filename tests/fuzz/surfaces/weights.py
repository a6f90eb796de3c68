"""WeightService, the learner's: manifests, versions, bytes and deltas of two published versions; reports of readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import torch

from services.common.spec.service import ServiceSpec
from services.learner.weight_servicer import SERVICE_NAME, WeightServicer
from services.learner.weights import PublishedWeights
from services.models.pairs import Fabric
from services.models.wire import version_message
from tests.fuzz import rpc
from tests.fuzz.surface import Surface
from trimtab.common.v1 import common_pb2 as common
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc

_PEER = "127.0.0.1:9"


class _Publisher:
    """An application that has published two versions and trains nothing. See services/common/server.py."""

    name = "learner"

    def __init__(self, published: PublishedWeights) -> None:
        self._published = published

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        servicer = WeightServicer(Fabric("rack", torch.device("cpu")))
        servicer.attach(self._published, lambda _error: None)
        weights_pb2_grpc.add_WeightServiceServicer_to_server(servicer, server)
        return [SERVICE_NAME]

    async def start(self) -> None:
        """Nothing to load."""

    async def drain(self) -> None:
        """Nothing to hand back."""

    async def wait(self) -> int:
        return 0


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """Two versions of two tensors, a delta between them."""
    published = PublishedWeights(tokenizer_fingerprint="f" * 64, deltas=True)
    first = {"a": torch.arange(4000.0).reshape(40, 100), "b": torch.ones(300, dtype=torch.bfloat16)}
    second = {"a": first["a"] + (torch.arange(4000).reshape(40, 100) % 50 == 0), "b": first["b"]}
    versions = [
        version_message(published.publish(1, step, state)[0]) for step, state in enumerate((first, second))
    ]
    with (
        rpc.served(ServiceSpec(), lambda: _Publisher(published)) as endpoints,
        rpc.surface(endpoints.grpc, _methods(versions)) as surface,
    ):
        yield surface
    published.close()


def _methods(versions: list[common.WeightsVersion]) -> list[rpc.Method]:
    service, [old, new] = "trimtab.weights.v1.WeightService", versions
    return [
        rpc.Method(
            f"{service}/GetManifest",
            [wire.GetManifestRequest(run_uid="run"), wire.GetManifestRequest(version=new)],
            wire.GetManifestResponse,
        ),
        rpc.Method(
            f"{service}/WatchVersions",
            [wire.WatchVersionsRequest(run_uid="run", peer_address=_PEER)],
            wire.WatchVersionsResponse,
            streaming=True,
            endless=True,
        ),
        rpc.Method(
            f"{service}/FetchWeights",
            [
                wire.FetchWeightsRequest(run_uid="run", want=new),
                wire.FetchWeightsRequest(want=new, have=old, offset=3),
                wire.FetchWeightsRequest(want=new, tensors=["b"], components=["policy"], wait=True),
                wire.FetchWeightsRequest(want=new, pair="one"),
            ],
            wire.FetchWeightsResponse,
            streaming=True,
            # A reader may wait for a version that is to come: it hears that all is well until it goes.
            endless=True,
            check=_check,
        ),
        rpc.Method(
            f"{service}/OpenPair",
            [wire.OpenPairRequest(run_uid="run", pair="one", fabric="rack", backend="gloo")],
            wire.OpenPairResponse,
            streaming=True,
            endless=True,
        ),
        rpc.Method(
            f"{service}/ReportVersion",
            [
                wire.ReportVersionRequest(
                    run_uid="run", peer_address=_PEER, version=new, failed_sources=[_PEER]
                )
            ],
            wire.ReportVersionResponse,
            # Other bytes under a version's name: the learner says so, and ends the run.
            statuses=frozenset({"DATA_LOSS"}),
        ),
    ]


def _check(sent: bytes, answers: list[Any]) -> None:
    request = wire.FetchWeightsRequest.FromString(sent)
    for piece in answers:
        if piece.data:
            assert piece.offset == request.offset, "another piece than was asked for"
            assert piece.offset + len(piece.data) <= piece.total_bytes, "more than there is"
