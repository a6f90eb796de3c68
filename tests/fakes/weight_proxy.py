"""A TCP proxy that does harm on demand: flips bytes on the way back, delays, doubles or loses them, or goes away."""

from __future__ import annotations

import asyncio
import contextlib

PIECE = 1 << 16


class HarmfulProxy:
    """Passes on to `target` (host:port). `flips`: pieces of at least `smallest` bytes that are still to be damaged.

    `away`: refuses whoever comes. `delay`: seconds that every piece on the way back takes longer. `doubles`: pieces
    that still come twice. `losses`: answers that still are lost, and the connection with them, after the deed.
    """

    def __init__(self, *, smallest: int = 2000) -> None:
        self.target = ""
        self.flips = 0
        self.flipped = 0
        self.away = False
        self.delay = 0.0
        self.doubles = 0
        self.losses = 0
        self.address = ""
        self._smallest = smallest
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """End every connection, as a peer that is killed does."""
        for writer in self._open:
            writer.transport.abort()

    async def close(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        if self.away:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, far_writer}
        with contextlib.suppress(OSError, ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, far_writer, harm=False))
                tasks.create_task(self._pass(far_reader, writer, harm=True))
        self._open -= {writer, far_writer}

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, harm: bool) -> None:
        try:
            while data := await source.read(PIECE):
                if harm and self.delay:
                    await asyncio.sleep(self.delay)
                for piece in self._harmed(data) if harm else (data,):
                    sink.write(piece)
                await sink.drain()
        finally:
            sink.close()

    def _harmed(self, data: bytes) -> tuple[bytes, ...]:
        """What goes on in its place. ConnectionResetError where nothing more does."""
        if self.losses > 0:
            self.losses -= 1
            raise ConnectionResetError("an answer is lost")
        if len(data) < self._smallest:
            return (data,)
        if self.doubles > 0:
            self.doubles -= 1
            return (data, data)
        return (self._flipped(data),)

    def _flipped(self, data: bytes) -> bytes:
        if self.flips <= 0:
            return data
        self.flips -= 1
        self.flipped += 1
        bad = bytearray(data)
        bad[-20] ^= 0x10
        return bytes(bad)
