"""Owns the one door to the store for everything inside an event loop: servicer and built-in annotators alike.

    servicer ──┐
    annotator ─┼──▶ Preferences ──▶ executor threads ──▶ PreferenceStore
    pages ─────┘         ├──▶ with SQLite threads for questions, long ones apart: who only asks holds up no label
                         └──▶ threads of their own: ratings and statistics, which compute for seconds at most

SQLite has one writer, so one thread is enough for it; PostgreSQL gets a few. All leave the loop free.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from prometheus_client import Counter
from sqlalchemy.orm import Session

from services.preference import overview
from services.preference.answering import Outcome, UnitAnswer
from services.preference.assignment import Chooser, Unit
from services.preference.crowd import Reliability
from services.preference.domain import Comparison, Item, Statistics, Subject, Task
from services.preference.insight import Insight, summarise
from services.preference.ratings import Rating, RatingMethod, rate, reliability
from services.preference.reports import Cursor
from services.preference.store import PreferenceStore, Uploaded

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
_ANSWERS_AT_ONCE = 32  # pages whose answers share a transaction, and so a sync of the disk
_QUESTIONS_AT_ONCE = 2  # an owner's long one holds up no look at who asks

RECORDED = Counter("trimtab_preference_comparisons", "Comparisons recorded.")

UPLOADED = Counter("trimtab_preference_items", "Items uploaded.")


class Preferences:
    """The store's operations as coroutines; see PreferenceStore for what each does and raises."""

    def __init__(self, open_store: Callable[[], PreferenceStore], method: RatingMethod) -> None:
        self._open_store = open_store
        self._method = method
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="preference-store")
        self._asking = ThreadPoolExecutor(_QUESTIONS_AT_ONCE, thread_name_prefix="preference-asking")
        # What grows with all that was ever said: its askers wait for each other, and nobody waits for them.
        self._reporting = ThreadPoolExecutor(1, thread_name_prefix="preference-reporting")
        self._opened: PreferenceStore | None = None
        self._uploaded = asyncio.Event()
        self._news = asyncio.Event()
        self._waiting: list[tuple[Sequence[UnitAnswer], asyncio.Future[list[Outcome]]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the store. Once, before anything else."""
        self._opened = await self._run(self._open_store)
        if self._opened.threads > 1:
            self._executor.shutdown()
            self._executor = ThreadPoolExecutor(self._opened.threads, thread_name_prefix="preference-store")
            # Several write at once there, so that a question holds up nobody.
            self._asking.shutdown()
            self._reporting.shutdown()
            self._asking = self._reporting = self._executor

    async def close(self) -> None:
        """Close the store after the calls that are under way."""
        for executor in {self._asking, self._reporting} - {self._executor}:
            executor.shutdown()
        if self._opened is not None:
            await self._run(self._opened.close)
            self._opened = None
        self._executor.shutdown()

    @property
    def uploads(self) -> asyncio.Event:
        """Is set at the next upload; take it before looking for tasks, and wait for it after finding none."""
        return self._uploaded

    @property
    def news(self) -> asyncio.Event:
        """Is set at the next upload or label."""
        return self._news

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def upload(self, items: Sequence[Item]) -> Uploaded:
        """Add items."""
        uploaded = await self._run(self._store.upload, items)
        if uploaded.accepted:
            UPLOADED.inc(uploaded.accepted)
            self._uploaded.set()
            self._uploaded = asyncio.Event()
            self._tell()
        return uploaded

    async def next_tasks(self, annotator: str, *, campaign: str = "", limit: int = 1) -> list[Task]:
        """Lease tasks."""
        return await self._run(self._store.next_tasks, annotator, campaign=campaign, limit=limit)

    async def next_units(
        self, annotator: str, *, campaign: str = "", limit: int = 1, rankings: bool = True
    ) -> list[Unit]:
        """Lease what a page shows."""
        return await self._run(
            self._store.next_units, annotator, campaign=campaign, limit=limit, rankings=rankings
        )

    async def release(self, annotator: str, *, until: float | None = None) -> int:
        """Free what an annotator holds."""
        return await self._run(self._store.release, annotator, until=until)

    async def record(self, comparisons: Sequence[Comparison], *, made_elsewhere: bool = False) -> int:
        """Record durably."""
        recorded = await self._run(self._store.record, comparisons, made_elsewhere=made_elsewhere)
        self._count(recorded)
        return recorded

    async def answer(self, answers: Sequence[UnitAnswer]) -> list[Outcome]:
        """Keep what pages say durably. What comes while others are being written goes to disk together."""
        written: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append((answers, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_answers())
        return await written

    async def _write_answers(self) -> None:
        """Write all that wait, one transaction after the other. One that fails fails all that are in it."""
        while self._waiting:
            batch, self._waiting = self._waiting[:_ANSWERS_AT_ONCE], self._waiting[_ANSWERS_AT_ONCE:]
            try:
                outcomes = await self._run(
                    self._store.answer, [one for answers, _ in batch for one in answers]
                )
            except Exception as error:
                for _, written in batch:
                    if not written.done():
                        written.set_exception(error)
                continue
            told = iter(outcomes)
            for answers, written in batch:
                part = list(itertools.islice(told, len(answers)))
                if not written.done():  # who asked may be gone
                    written.set_result(part)
            self._count(sum(outcome.new for outcome in outcomes))
        self._writing = None

    def _count(self, recorded: int) -> None:
        RECORDED.inc(recorded)
        if recorded:
            self._tell()

    async def query(self, work: Callable[[Session], Result]) -> Result:
        """Ask the tables something."""
        return await _on(self._asking, functools.partial(self._store.query, work))

    async def change(self, work: Callable[[Session], Result]) -> Result:
        """Change something of them durably."""
        return await self._run(self._store.change, work)

    async def register(self, annotator: str, *, rule: str, digest: str) -> None:
        """Make a built-in annotator known."""
        await self._run(self._store.register, annotator, rule=rule, digest=digest)

    async def comparisons(
        self, *, campaign: str = "", items: bool = False, gold: bool = False
    ) -> AsyncIterator[tuple[Comparison, Item | None]]:
        """All comparisons by recorded time, page by page; what changes meanwhile comes once, as it was first read."""
        after: Cursor | None = None
        told: dict[
            str, set[str]
        ] = {}  # tasks by annotator: a changed answer has a new time, and would come again
        while True:
            page = await self._report(
                self._store.page, campaign=campaign, after=after, items=items, gold=gold
            )
            for comparison, item in page.rows:
                tasks = told.setdefault(comparison.annotator, set())
                if comparison.task_id not in tasks:
                    tasks.add(comparison.task_id)
                    yield comparison, item
            if page.end is None:
                return
            after = page.end

    async def ratings(self, subject: Subject, *, campaign: str = "") -> list[Rating]:
        """Ratings, best first."""
        games = await self._report(self._store.games, subject, campaign=campaign)
        return await asyncio.to_thread(rate, games, self._method)

    async def reliability(self, *, campaign: str = "") -> list[Reliability]:
        """How reliable each annotator is, by comparisons of sources, of candidates where no two sources met.

        Candidates of different items never meet: by them alone, one answer to each pair tells nothing about anybody.
        """
        games = await self._report(self._store.games, Subject.SOURCE, campaign=campaign)
        if not any(game.first != game.second for game in games):
            games = await self._report(self._store.games, Subject.CANDIDATE, campaign=campaign)
        return await asyncio.to_thread(reliability, games, self._method)

    async def statistics(self, *, campaign: str = "") -> Statistics:
        """Counts."""
        return await self._report(self._store.statistics, campaign=campaign)

    async def insight(self, *, campaign: str = "") -> Insight:
        """What each annotator did, and how far they agree."""
        answers = await self.query(lambda session: overview.answers(session, campaign))
        return await asyncio.to_thread(summarise, answers)

    async def choose(self, chooser: Chooser, *, limit: int) -> None:
        """Let open tasks go out in the chooser's order."""
        games = await self._report(self._store.games, Subject.CANDIDATE)
        tasks = await self._report(self._store.open_tasks, limit=limit)
        ids = await asyncio.to_thread(chooser, games, tasks)
        await self._run(self._store.prefer, list(ids))

    @property
    def _store(self) -> PreferenceStore:
        if self._opened is None:
            raise RuntimeError("Preferences is used before open() or after close()")
        return self._opened

    async def _run(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        return await _on(self._executor, functools.partial(work, *args, **kwargs))

    async def _report(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        return await _on(self._reporting, functools.partial(work, *args, **kwargs))


async def _on(executor: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(executor, work)
