"""Owns the one door to the store for everything inside an event loop: servicer and built-in annotators alike.

    servicer ──┐
               ├──▶ Preferences ──▶ one executor thread ──▶ PreferenceStore
    annotator ─┘         └──▶ a thread of their own: ratings, which compute for seconds at most

One thread is enough (SQLite has one writer), keeps calls in order, and leaves the loop free.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from prometheus_client import Counter

from services.preference.domain import Comparison, Item, Statistics, Subject, Task
from services.preference.ratings import Rating, RatingMethod, rate
from services.preference.reports import Cursor
from services.preference.store import PreferenceStore, Uploaded

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

RECORDED = Counter("trimtab_preference_comparisons", "Comparisons recorded.")
UPLOADED = Counter("trimtab_preference_items", "Items uploaded.")


class Preferences:
    """The store's operations as coroutines; see PreferenceStore for what each does and raises."""

    def __init__(self, open_store: Callable[[], PreferenceStore], method: RatingMethod) -> None:
        self._open_store = open_store
        self._method = method
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="preference-store")
        self._opened: PreferenceStore | None = None
        self._uploaded = asyncio.Event()

    async def open(self) -> None:
        """Open the store. Once, before anything else."""
        self._opened = await self._run(self._open_store)

    async def close(self) -> None:
        """Close the store after the calls that are under way."""
        if self._opened is not None:
            await self._run(self._opened.close)
            self._opened = None
        self._executor.shutdown()

    @property
    def uploads(self) -> asyncio.Event:
        """Is set at the next upload; take it before looking for tasks, and wait for it after finding none."""
        return self._uploaded

    async def upload(self, items: Sequence[Item]) -> Uploaded:
        """Add items."""
        uploaded = await self._run(self._store.upload, items)
        if uploaded.accepted:
            UPLOADED.inc(uploaded.accepted)
            self._uploaded.set()
            self._uploaded = asyncio.Event()
        return uploaded

    async def next_tasks(self, annotator: str, *, campaign: str = "", limit: int = 1) -> list[Task]:
        """Lease tasks."""
        return await self._run(self._store.next_tasks, annotator, campaign=campaign, limit=limit)

    async def release(self, annotator: str) -> int:
        """Free what an annotator holds."""
        return await self._run(self._store.release, annotator)

    async def record(self, comparisons: Sequence[Comparison]) -> int:
        """Record durably."""
        recorded = await self._run(self._store.record, comparisons)
        RECORDED.inc(recorded)
        return recorded

    async def register(self, annotator: str, *, rule: str, digest: str) -> None:
        """Make a built-in annotator known."""
        await self._run(self._store.register, annotator, rule=rule, digest=digest)

    async def comparisons(
        self, *, campaign: str = "", items: bool = False
    ) -> AsyncIterator[tuple[Comparison, Item | None]]:
        """All comparisons by recorded time, read page by page."""
        after: Cursor | None = None
        while True:
            page = await self._run(self._store.page, campaign=campaign, after=after, items=items)
            for row in page.rows:
                yield row
            if page.end is None:
                return
            after = page.end

    async def ratings(self, subject: Subject, *, campaign: str = "") -> list[Rating]:
        """Ratings, best first."""
        games = await self._run(self._store.games, subject, campaign=campaign)
        return await asyncio.to_thread(rate, games, self._method)

    async def statistics(self, *, campaign: str = "") -> Statistics:
        """Counts."""
        return await self._run(self._store.statistics, campaign=campaign)

    @property
    def _store(self) -> PreferenceStore:
        if self._opened is None:
            raise RuntimeError("Preferences is used before open() or after close()")
        return self._opened

    async def _run(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        bound = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, bound)
