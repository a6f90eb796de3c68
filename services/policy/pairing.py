"""A reader's pairs with its sources: made when first asked for, held over many versions, made again when one broke."""

from __future__ import annotations

import asyncio
import ipaddress
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import grpc
import structlog

from services.common.channels import make_channel
from services.common.errors import TrimtabError
from services.common.routes import address_towards, host_and_port
from services.common.spec.channel import ChannelSpec
from services.models.pairs import OPEN_SECONDS, Fabric, Pair, meeting
from services.models.rendezvous import Rendezvous
from trimtab.weights.v1 import weights_pb2 as wire
from trimtab.weights.v1 import weights_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.weights.v1.weights_pb2_grpc import WeightServiceAsyncStub

_AGAIN_SECONDS = 60.0
"""After a source had none, or one broke."""
_PATIENCE_SECONDS = 2.0
"""While a pair is made. Then gRPC does it, this once."""
_LONGEST_SECONDS = 30 * 86400.0
_log = structlog.get_logger(__name__)


class Pairing:
    """By the source's address. Without a fabric there are none."""

    def __init__(self, fabric: Fabric | None, run_uid: str, *, stall_seconds: float) -> None:
        self._fabric, self._run_uid, self._stall_seconds = fabric, run_uid, stall_seconds
        self._held: dict[str, tuple[asyncio.Task[None], asyncio.Future[Pair | None]]] = {}
        self._not_before: dict[str, float] = {}

    async def pair(self, address: str, spec: ChannelSpec) -> Pair | None:
        """The pair with this source; None where it has none, or not yet: then gRPC does it all."""
        if self._fabric is None or time.monotonic() < self._not_before.get(address, 0):
            return None
        if address not in self._held:
            made: asyncio.Future[Pair | None] = asyncio.get_running_loop().create_future()
            self._held[address] = asyncio.create_task(self._hold(address, spec, self._fabric, made)), made
        ready = self._held[address][1]
        await asyncio.wait([ready], timeout=_PATIENCE_SECONDS)
        return ready.result() if ready.done() else None

    def broke(self, address: str) -> None:
        """Something went wrong while it was used. After a while a new one is tried."""
        held = self._held.pop(address, None)
        if held is not None:
            held[0].cancel()
            self._not_before[address] = time.monotonic() + _AGAIN_SECONDS

    async def close(self) -> None:
        """Break all."""
        tasks = [task for task, _ in self._held.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _hold(
        self, address: str, spec: ChannelSpec, fabric: Fabric, ready: asyncio.Future[Pair | None]
    ) -> None:
        """Open it, and keep the call that it lives by."""
        pair = Pair(fabric, uuid.uuid4().hex, is_source=False, seconds=self._stall_seconds)
        why = "the source ended it"
        try:
            async with make_channel(address, spec) as channel:
                await self._live(channel, address, fabric, pair, ready)
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
        except (TrimtabError, OSError, TimeoutError, ValueError) as error:
            why = str(error)
        finally:
            if not ready.done():
                _log.warning("no pair with a source of weights: gRPC does it", address=address, why=why)
                self._not_before[address] = time.monotonic() + _AGAIN_SECONDS
                ready.set_result(None)
            if self._held.get(address, (None, None))[1] is ready:
                del self._held[address]
            pair.close()

    async def _live(
        self,
        channel: grpc.aio.Channel,
        address: str,
        fabric: Fabric,
        pair: Pair,
        ready: asyncio.Future[Pair | None],
    ) -> None:
        outbox: asyncio.Queue[wire.OpenPairRequest | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(key: str, value: bytes) -> None:
            request = wire.OpenPairRequest(key=key, value=value)
            loop.call_soon_threadsafe(outbox.put_nowait, request)

        host, port = host_and_port(address)
        # A name may be that of a whole Service; where replicas name each other, they do so by number.
        store = meeting(fabric, tell, host.strip("[]") if _is_number(host) else "")
        outbox.put_nowait(
            wire.OpenPairRequest(
                run_uid=self._run_uid, pair=pair.name, fabric=fabric.name, backend=fabric.backend
            )
        )
        stub = cast("WeightServiceAsyncStub", wire_grpc.WeightServiceStub(channel))
        call = stub.OpenPair(_all_of(outbox), timeout=_LONGEST_SECONDS)
        hearing: asyncio.Task[None] | None = None
        try:
            answers = aiter(call)
            async with asyncio.timeout(OPEN_SECONDS):
                await anext(answers, None)  # it takes part
            hearing = asyncio.create_task(_hear(answers, store))
            # A name is looked up, which may take its time.
            own = await asyncio.to_thread(address_towards, host, port)
            await pair.connect(store, own)
            _log.info("a pair with a source of weights", address=address, backend=fabric.backend)
            ready.set_result(pair)
            await hearing
        finally:
            store.close()
            if hearing is not None:
                hearing.cancel()
            outbox.put_nowait(None)
            call.cancel()


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


async def _all_of(
    outbox: asyncio.Queue[wire.OpenPairRequest | None],
) -> AsyncIterator[wire.OpenPairRequest]:
    while (request := await outbox.get()) is not None:
        yield request


async def _hear(answers: AsyncIterator[wire.OpenPairResponse], store: Rendezvous) -> None:
    async for answer in answers:
        store.told(answer.key, answer.value)
