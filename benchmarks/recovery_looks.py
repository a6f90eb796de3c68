"""What benchmarks.recovery sees of a queue server, from outside, and of a learner's log. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.common.stages.entry import GROUP, RunKeys

_MOST = 1000


class QueueLooks:
    """The streams of one run. RedisError while the server is away."""

    def __init__(self, url: str, run_uid: str) -> None:
        # Fields of entries are no text.
        self._client = redis.asyncio.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0))
        self._client.response_callbacks.clear()  # answers are wanted as they come
        self._keys = RunKeys(run_uid)

    async def held(self, stage: str, consumer: str) -> list[str]:
        """Ids of the entries that a consumer holds."""
        found = await self._ask("XPENDING", self._keys.stage(stage), GROUP, "-", "+", _MOST, consumer)
        return [entry_id.decode() for entry_id, *_ in found]

    async def owners(self, stage: str, ids: Sequence[str]) -> dict[str, str]:
        """Of those that still stand on the stage: who holds them."""
        found = await self._ask("XPENDING", self._keys.stage(stage), GROUP, "-", "+", _MOST)
        owners = {entry_id.decode(): consumer.decode() for entry_id, consumer, *_ in found}
        return {one: owners[one] for one in ids if one in owners}

    async def first_since(self, stages: Sequence[str], moment: float) -> float | None:
        """When the first entry came to any of these stages since a moment, both by the server's clock, Unix seconds.

        None while there is none, or no server.
        """
        begin = f"{int(moment * 1000) + 1}-0"
        try:
            found = [
                milliseconds(entry[0].decode())
                for stage in stages
                for entry in await self._ask("XRANGE", self._keys.stage(stage), begin, "+", "COUNT", 1)
            ]
        except (RedisError, OSError):
            return None
        return min(found) if found else None

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.aclose()

    async def _ask(self, *command: Any) -> list[Any]:
        execute = cast("Callable[..., Awaitable[list[Any]]]", self._client.execute_command)
        return list(await execute(*command))


def milliseconds(entry_id: str) -> float:
    """When an entry was added, Unix seconds."""
    return int(entry_id.partition("-")[0]) / 1000


def first_step_since(lines: Iterable[str], moment: float) -> float | None:
    """When the first step after a moment was done, of the lines of metrics.jsonl; one that is cut off says nothing."""
    for line in lines:
        try:
            told = float(json.loads(line)["time"])
        except (ValueError, KeyError, TypeError):
            continue
        if told > moment:
            return told
    return None


def loading_seconds(lines: Iterable[str], after: float) -> float:
    """From a service's first `listening` after a moment to its first `serving` after that: it loads its model then.

    after: Unix seconds. Raises ValueError where the log does not say.
    """
    listening: float | None = None
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if not isinstance(told, dict) or told.get("event") not in ("listening", "serving"):
            continue
        moment = datetime.fromisoformat(told["timestamp"]).timestamp()
        if moment <= after:
            continue
        if told["event"] == "listening":
            listening = moment
        elif listening is not None:
            return moment - listening
    raise ValueError("the log does not say when the model was loaded")
