"""A source's pairs: made by OpenPair, looked up by FetchWeights, gone with the call that made them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import structlog

from services.common.errors import (
    AlreadyExists,
    InvalidInput,
    Mismatch,
    Overloaded,
    TrimtabError,
    Unavailable,
)
from services.common.routes import address_towards, host_of_peer
from services.models.pairs import Fabric, Pair, PairBroken, meeting
from services.models.rendezvous import Rendezvous
from trimtab.weights.v1 import weights_pb2 as wire

_MOST_PAIRS = 64
"""Each is a thread, a listening socket and a place among the server's streams."""
_NAME_LENGTH = 64
_SEND_SECONDS = 30.0
_log = structlog.get_logger(__name__)


Outbox = asyncio.Queue[wire.OpenPairResponse | None]
"""What the reader is told; None: nothing more."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A pair, and the call that it lives by."""

    pair: Pair
    connecting: asyncio.Task[None]
    outbox: Outbox


class Pairs:
    """By name, of one server. Lives on its event loop."""

    def __init__(self, fabric: Fabric | None = None) -> None:
        self._fabric = fabric
        self._pairs: dict[str, _Open] = {}
        # Attempts to connect may outlast the calls that began them, each with a thread.
        self._connecting: set[asyncio.Task[None]] = set()
        self._closing = False

    async def find(self, name: str) -> Pair | None:
        """The pair, connected; None where there is none of this name, or none any more."""
        found = self._pairs.get(name)
        if found is None:
            return None
        try:
            await asyncio.shield(found.connecting)
        except PairBroken:
            return None
        return found.pair

    def broke(self, pair: Pair) -> None:
        """It is of no use any more; the call that made it ends, too."""
        found = self._pairs.pop(pair.name, None)
        if found is not None:
            found.outbox.put_nowait(None)
        pair.close()

    async def open(
        self, requests: AsyncIterator[wire.OpenPairRequest], context: Any
    ) -> AsyncIterator[wire.OpenPairResponse]:
        """See WeightService.OpenPair."""
        first = await _next(requests)
        if first is None:
            raise InvalidInput("expected a message that says whom to connect", {"pair": "a name"})
        theirs = host_of_peer(context.peer())
        host = await asyncio.to_thread(_address_towards, theirs)
        fabric = self._admitted(first)
        outbox: Outbox = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(key: str, value: bytes) -> None:
            answer = wire.OpenPairResponse(key=key, value=value)
            loop.call_soon_threadsafe(outbox.put_nowait, answer)

        store = meeting(fabric, tell, theirs)
        pair = Pair(fabric, first.pair, is_source=True, seconds=_SEND_SECONDS)
        connecting = asyncio.create_task(pair.connect(store, host))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        connecting.add_done_callback(lambda task: _told(task, outbox))
        hearing = asyncio.create_task(_hear(requests, store, outbox))
        self._pairs[first.pair] = _Open(pair, connecting, outbox)
        try:
            yield wire.OpenPairResponse()
            while (answer := await outbox.get()) is not None:
                yield answer
            if hearing.done():
                hearing.result()
        finally:
            hearing.cancel()
            store.close()
            self.broke(pair)

    def close(self) -> None:
        """Break all, and make no more."""
        self._closing = True
        for found in list(self._pairs.values()):
            self.broke(found.pair)

    def _admitted(self, first: wire.OpenPairRequest) -> Fabric:
        if self._closing:
            raise Unavailable("this server is ending")
        if not 0 < len(first.pair) <= _NAME_LENGTH:
            raise InvalidInput("a pair needs a name", {"pair": f"1 to {_NAME_LENGTH} characters"})
        if self._fabric is None or self._fabric.name != first.fabric:
            raise Mismatch("the fabric named is not this server's")
        if self._fabric.backend != first.backend:
            raise Mismatch(f"{first.backend} was asked for, this server's side is of {self._fabric.backend}")
        if first.pair in self._pairs:
            raise AlreadyExists("there is a pair of this name")
        if max(len(self._pairs), len(self._connecting)) >= _MOST_PAIRS:
            raise Overloaded(f"there are {_MOST_PAIRS} pairs, which is the limit")
        return self._fabric


def _address_towards(host: str) -> str:
    try:
        return address_towards(host)
    except OSError as error:
        raise Unavailable(f"no way to {host}: {error}") from None


async def _next(requests: AsyncIterator[wire.OpenPairRequest]) -> wire.OpenPairRequest | None:
    return await anext(aiter(requests), None)


async def _hear(requests: AsyncIterator[wire.OpenPairRequest], store: Rendezvous, outbox: Outbox) -> None:
    """Until the reader has no more to say, which ends the pair."""
    try:
        async for request in requests:
            store.told(request.key, request.value)
    finally:
        outbox.put_nowait(None)


def _told(task: asyncio.Task[None], outbox: Outbox) -> None:
    if task.cancelled():
        return
    if (error := task.exception()) is not None:
        _log.warning(
            "a pair could not be made", why=str(error) if isinstance(error, TrimtabError) else repr(error)
        )
        outbox.put_nowait(None)
