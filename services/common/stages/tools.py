"""Owns what an operator may look at and do: stages, dead letters, requeue. Takes part in no run."""

from __future__ import annotations

import re

from services.common.stages import scripts
from services.common.stages.base import LEASE_SECONDS, DeadLetter, Scan
from services.common.stages.entry import RunKeys, read_letter
from services.common.stages.link import Link
from services.common.stages.redis_stages import RedisSteps
from services.common.stages.tls_files import TlsFiles

PATIENCE_SECONDS = 5.0
_LETTER_ID = re.compile(r"\d{1,20}-\d{1,20}")


class RedisTools:
    """QueueTools on a Redis 7 or Valkey server. A person waits, so it gives up sooner than a worker."""

    def __init__(
        self,
        url: str,
        run_uid: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        tls: TlsFiles | None = None,
    ) -> None:
        self._keys = RunKeys(run_uid)
        self._lease = lease_seconds
        self._link = Link(url, patience_seconds=patience_seconds, tls=tls)
        self._steps = RedisSteps(self._link, self._keys, "tools")

    async def view(self) -> Scan:
        """See QueueTools.view."""
        return await self._steps.scan(self._lease)

    async def dead_letters(self, *, limit: int) -> list[DeadLetter]:
        """See QueueTools.dead_letters."""
        found = await self._link.command("XRANGE", self._keys.dead, "-", "+", "COUNT", limit)
        return [read_letter(letter_id.decode(), fields) for letter_id, fields in found]

    async def requeue(self, letter_id: str) -> bool:
        """See QueueTools.requeue. Stored checksum and payload stay as they are."""
        if not _LETTER_ID.fullmatch(letter_id):
            return False
        found = await self._link.command("XRANGE", self._keys.dead, letter_id, letter_id)
        if not found:
            return False
        stage = read_letter(letter_id, found[0][1]).stage
        keys = (
            self._keys.epoch,
            self._keys.sentinel,
            self._keys.stages,
            self._keys.dead,
            self._keys.stage(stage),
        )
        arguments = (0, "", "tools", letter_id, stage)
        return bool(await self._link.script(scripts.REQUEUE, keys, arguments))

    async def forget(self) -> int:
        """See QueueTools.forget. Streams are named by the set of stages, which goes last: cut off, it is repeated."""
        names = await self._link.command("SMEMBERS", self._keys.stages)
        streams = [self._keys.stage(name.decode(errors="replace")) for name in names]
        keys = [*streams, self._keys.dead, self._keys.admitted, self._keys.sentinel, self._keys.epoch]
        removed = int(await self._link.command("UNLINK", *keys))
        return removed + int(await self._link.command("UNLINK", self._keys.stages))

    async def close(self) -> None:
        """Let go of connections."""
        await self._link.close()
