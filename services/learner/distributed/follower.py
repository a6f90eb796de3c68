"""Every process of a learner but the first: no queue, no file but its shards, no port but for its part of the weights.

It follows until it may go. SIGTERM is for the first one, which drains and lets the others go; that it is gone without a
word is then no failure.
"""

from __future__ import annotations

import signal
from typing import Any

import structlog

from services.common import garbage
from services.common.errors import ServiceError, Unavailable
from services.learner.config import LearnerConfig
from services.learner.distributed.commands import Follower
from services.learner.distributed.group import Place, TorchGroup
from services.learner.distributed.joining import Part, join, load_part
from services.learner.distributed.part_server import PartServer
from services.learner.distributed.publishing import InParts

_log = structlog.get_logger(__name__)


class FollowerProgram:
    """See services/common/entry.py Program."""

    def __init__(self, config: LearnerConfig, place: Place) -> None:
        self._config, self._place = config, place
        self._stopping = False

    def run(self) -> int:
        """0 when it was let go, or the first process is gone after SIGTERM; 1 otherwise."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        group = join(self._config, self._place)
        try:
            with group.unbroken():
                part = load_part(self._config.run, group)
            _log.info("joined", rank=self._place.rank, processes=self._place.size, device=str(group.device))
            self._follow(part, group)
        except ServiceError as error:
            # What all processes meet alike the first one tells; what only this one met breaks the group.
            _log.info("left", rank=self._place.rank, reason=str(error))
            return 0 if self._stopping and isinstance(error, Unavailable) else 1
        group.leave()
        return 0

    def _follow(self, part: Part, group: TorchGroup) -> None:
        server = PartServer(self._config, group.device, self._place.local_rank)
        follower = Follower(part.trainer, group, part.serving, server.publish)
        together = InParts(group, follower.gathered().sizes(), server.start())
        server.attach(part.loaded, together)
        garbage.set_aside()
        try:
            follower.follow()
        finally:
            server.stop()

    def _stop(self, *_: Any) -> None:
        self._stopping = True
