"""Bytes from one process to another past gRPC, where both share a fabric. NCCL between GPUs, gloo between processors.

    source ──OpenPair: what each must know of the other──▶ reader      a process group of two, for this reader alone
    source ══ pieces, as FetchWeights announces them ═════▶ reader      one that is slow or dead holds up nobody else

What arrives is verified against the manifest like any bytes. Pieces have no names: the next one sent is the next one
received, so a pair is closed by whatever goes wrong, also beside it, and gRPC goes on from there. A group of all
readers, as others have it, would wait for its slowest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from services.common.errors import Unavailable
from services.models.gloo_address import check_address
from services.models.loading import torch_device
from services.models.rendezvous import Rendezvous

PIECE_BYTES = 16 * 2**20
"""283 MB on loopback take 0.19 s in pieces of 16 MiB, 0.20 s of 64 MiB, 0.29 s of 4 MiB, 0.55 s of 1 MiB."""
LEAST_BYTES = 2**20
"""Less goes with the call's own messages."""
OPEN_SECONDS = 20.0
_SOURCE, _READER = 0, 1
_POLL_SECONDS = 0.0005
_ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_making = threading.Lock()
Value = TypeVar("Value")


class PairBroken(Unavailable):
    """Nothing goes through this pair any more."""


@dataclass(frozen=True, slots=True)
class Fabric:
    """What processes share that are connected faster than by a network. `device`: what of this process is on it."""

    name: str
    device: torch.device

    @classmethod
    def named(cls, name: str, device: str) -> Fabric | None:
        """None for an empty name: nothing is shared. device: as a ModelSpec says it."""
        return cls(name, torch_device(device)) if name else None

    @property
    def backend(self) -> str:
        """Of torch.distributed."""
        return "nccl" if self.device.type == "cuda" else "gloo"


class Pair:
    """One direction: the source sends, the reader receives. Its work is done by a thread of its own, in order."""

    def __init__(self, fabric: Fabric, name: str, *, is_source: bool, seconds: float) -> None:
        """seconds: of silence after which it is broken."""
        self.name = name
        self._fabric, self._seconds = fabric, seconds
        self._own, self._other = (_SOURCE, _READER) if is_source else (_READER, _SOURCE)
        self._group: Any = None
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights-pair")

    async def connect(self, store: Rendezvous, host: str) -> None:
        """Find the other side. host: this machine's own address towards it. Raises PairBroken."""
        await self._do(lambda: self._connect(store, host))

    async def send(self, make: Callable[[], bytes]) -> None:
        """Make a piece and send it. Raises PairBroken."""
        await self._do(lambda: self._send(make()))

    async def receive(self, count: int) -> memoryview:
        """The next piece, of so many bytes. Raises PairBroken."""
        return await self._do(lambda: self._receive(count))

    def close(self) -> None:
        """Nothing goes through any more. What waits in its thread ends by its own patience."""
        self._closed = True
        self._abort()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _do(self, work: Callable[[], Value]) -> Value:
        """In its thread, which may wait in NCCL's own code for longer than anybody wants to."""
        most = self._seconds + OPEN_SECONDS
        try:
            async with asyncio.timeout(most):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            why = f"nothing came for {most:g} s"
        except (RuntimeError, ValueError) as error:
            # torch's own words, and those of a thread that is shut down.
            why = _first_line(error)
        raise PairBroken(f"the pair over {self._fabric.backend} broke: {why}")

    def _connect(self, store: Rendezvous, host: str) -> None:
        seconds = timedelta(seconds=OPEN_SECONDS)
        if self._fabric.backend == "nccl":
            self._group = _nccl(store, self._own, seconds)
        else:
            self._group = _gloo(store, self._own, seconds, host)
        if self._closed:
            self._abort()
            return
        # NCCL connects at the first use: a pair is one through which something went.
        if self._own == _SOURCE:
            self._send(b"\0")
        else:
            self._receive(1)

    def _abort(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            # On a thread of its own: NCCL takes its time over it.
            threading.Thread(target=_aborted, args=(group,), name="weights-pair-abort", daemon=True).start()

    def _send(self, data: bytes) -> None:
        # torch takes no buffer that is read-only, as bytes are.
        piece = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).to(self._fabric.device)
        self._await(self._open().send([piece], self._other, 0))

    def _receive(self, count: int) -> memoryview:
        piece = torch.empty(count, dtype=torch.uint8, device=self._fabric.device)
        self._await(self._open().recv([piece], self._other, 0))
        return piece.cpu().numpy().data

    def _open(self) -> Any:
        if self._group is None:
            raise RuntimeError("it is closed")
        return self._group

    def _await(self, work: Any) -> None:
        if self._fabric.backend == "gloo":
            work.wait(timedelta(seconds=self._seconds))
            return
        # NCCL's wait is the stream's: the host would wait in the copy that follows, for ever.
        ends = time.monotonic() + self._seconds
        while not work.is_completed():
            if time.monotonic() > ends:
                raise RuntimeError(f"nothing came for {self._seconds:g} s")
            time.sleep(_POLL_SECONDS)
        work.wait()


def meeting(fabric: Fabric, tell: Callable[[str, bytes], None], host: str) -> Rendezvous:
    """Where both sides of a pair find each other. host: the other one's address; empty where it is not known."""

    def check(theirs: bytes, ours: bytes) -> None:
        if fabric.backend == "gloo":
            check_address(theirs, like=ours, host=host)

    return Rendezvous(tell, OPEN_SECONDS, check)


def _aborted(group: Any) -> None:
    # Older gloo groups know no end but being forgotten.
    with contextlib.suppress(RuntimeError, AttributeError):
        group.abort()


def _gloo(store: Rendezvous, rank: int, seconds: timedelta, host: str) -> Any:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()  # the only way to say where it listens
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = seconds
    options._threads = 1
    return gloo(store, rank, 2, options)


def _nccl(store: Rendezvous, rank: int, seconds: timedelta) -> Any:
    """NCCL chooses addresses itself (NCCL_SOCKET_IFNAME, NCCL_IB_HCA)."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = seconds
    with _only_clean_up():
        return dist.ProcessGroupNCCL(store, rank, 2, options)


@contextlib.contextmanager
def _only_clean_up() -> Iterator[None]:
    """A group made within ends its own connections when the other side is gone; torch's default ends the process."""
    with _making:
        before = os.environ.get(_ERROR_HANDLING)
        os.environ[_ERROR_HANDLING] = "2"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_ERROR_HANDLING]
            else:
                os.environ[_ERROR_HANDLING] = before


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
