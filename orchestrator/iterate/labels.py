"""A campaign's labels: how many are missing, and the wait for them. Knows no round and no model.

Labels lie in the preference service's database, so a wait that is broken off costs none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from orchestrator.demo.collect import persist
from services.common.errors import Expired
from trimtab import AsyncPreferenceClient
from trimtab.preference.v1 import preference_pb2 as preference

_NAMED = 6


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a campaign stands. A task is missing until as many people as it is for have answered it."""

    campaign: str
    tasks: int
    missing: int
    by_annotator: Mapping[str, int]

    @classmethod
    def of(cls, campaign: str, tasks: int, counts: preference.GetStatisticsResponse) -> Standing:
        """From the service's counts; `tasks` are those that were uploaded."""
        return cls(campaign, tasks, counts.tasks_open, dict(counts.comparisons_by_annotator))

    def __str__(self) -> str:
        """For people: what is done, what is missing, who did how much (the busiest first)."""
        busiest = sorted(self.by_annotator.items(), key=lambda one: (-one[1], one[0]))
        names = [f"{name} {count}" for name, count in busiest[:_NAMED]]
        if len(busiest) > _NAMED:
            names.append(f"{len(busiest) - _NAMED} more")
        who = f" ({', '.join(names)})" if names else ""
        return f"{self.tasks - self.missing} of {self.tasks} compared, {self.missing} missing{who}"


class Tenths:
    """Says where a campaign stands at the beginning, after each tenth of it, and at the end: for logs, over days."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = -1

    def __call__(self, standing: Standing) -> None:
        """Say it if it is time to."""
        tenth = 10 * (standing.tasks - standing.missing) // max(standing.tasks, 1)
        if tenth != self._said:
            self._said = tenth
            self._say(f"      {standing}")


async def wait_for_labels(
    client: AsyncPreferenceClient,
    ready: Callable[[], Awaitable[object]],
    campaign: str,
    tasks: int,
    heard: Callable[[Standing], None],
    *,
    timeout_seconds: float | None,
    poll_seconds: float,
) -> Standing:
    """Until no task of the campaign is missing; without a timeout, as long as it takes. Raises Expired."""
    clock = asyncio.get_running_loop().time
    ends = None if timeout_seconds is None else clock() + timeout_seconds
    while True:
        found = Standing.of(
            campaign, tasks, await persist(lambda: client.statistics(campaign=campaign), ready)
        )
        heard(found)
        if not found.missing:
            return found
        if ends is not None and clock() > ends:
            raise Expired(f"campaign {campaign}: {found}; what is there is kept, go on with --resume")
        await asyncio.sleep(poll_seconds)
