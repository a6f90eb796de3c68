"""The learner's WeightService: what was published, and from whom else each reader may have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from services.common.errors import TrimtabError
from services.learner.relay import Relay
from services.learner.weights import PublishedWeights
from services.models import weight_servicer
from services.models.manifest import Version
from services.models.pairs import Fabric
from services.models.snapshots import WeightStore
from services.models.weight_servicer import SERVICE_NAME
from services.models.wire import version_of
from trimtab.weights.v1 import weights_pb2 as wire

__all__ = ["SERVICE_NAME", "WeightServicer"]


class WeightServicer(weight_servicer.WeightServicer):
    """Answers for one run's published weights. It alone knows all readers."""

    def __init__(self, fabric: Fabric | None = None) -> None:
        super().__init__(fabric)
        self._relay = Relay()
        self._published: PublishedWeights | None = None
        self._refuse: Callable[[TrimtabError], None] = _log_refused

    def attach(self, store: WeightStore, refuse: Callable[[TrimtabError], None] | None = None) -> None:
        """From now on answer for these. `refuse` ends the run."""
        super().attach(store)
        self._published = store if isinstance(store, PublishedWeights) else None
        self._refuse = refuse or self._refuse

    def sources(self, reader: str, version: Version) -> list[str]:
        """See the base."""
        return self._relay.sources(reader, version)

    def joined(self, reader: str) -> None:
        """See the base."""
        self._relay.joined(reader)

    def left(self, reader: str) -> None:
        """See the base."""
        self._relay.left(reader)

    async def ReportVersion(
        self, request: wire.ReportVersionRequest, context: Any
    ) -> wire.ReportVersionResponse:
        """A reader holds a version, and says who failed it. Other bytes under a version's name end the run."""
        version = version_of(request.version)
        try:
            if self._published is not None:
                self._published.check_claim(version, by=request.peer_address or "a reader")
        except TrimtabError as error:
            self._refuse(error)
            raise
        self._relay.holds(request.peer_address, version)
        for source in request.failed_sources:
            self._relay.failed(source)
        return wire.ReportVersionResponse()


def _log_refused(error: TrimtabError) -> None:
    structlog.get_logger(__name__).error("a reader's weights are refused", error=str(error))
