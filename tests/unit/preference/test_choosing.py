"""The order in which tasks go out is renewed when there is news, and answers of pages are written together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.common.errors import Unavailable
from services.preference.active import choose
from services.preference.answering import Outcome, UnitAnswer
from services.preference.assignment import OpenTask
from services.preference.choosing import ChoosingLoop
from services.preference.preferences import Preferences
from services.preference.ratings import Game, RatingMethod
from services.preference.reports import open_tasks
from services.preference.store import PreferenceStore
from services.preference.tables import TaskRow
from tests.unit.preference.builders import answer, item


@pytest.fixture
async def preferences(tmp_path: Path) -> AsyncIterator[Preferences]:
    opened = Preferences(lambda: PreferenceStore(f"sqlite:///{tmp_path / 'p.db'}"), RatingMethod())
    await opened.open()
    yield opened
    await opened.close()


async def test_every_label_asks_the_chooser_again(preferences: Preferences) -> None:
    """It is asked at the start and after a label, with what was said by then; its order is what goes out next."""
    calls: list[int] = []

    def last_first(games: Sequence[Game], tasks: Sequence[OpenTask]) -> list[str]:
        calls.append(len(games))
        return [task.task_id for task in tasks][::-1]

    await preferences.upload([item(n) for n in range(5)])
    running = asyncio.create_task(
        ChoosingLoop(preferences, last_first, refresh_seconds=0.001, consider_tasks=100).run()
    )

    async def chosen(times: int, tasks: int) -> None:
        for _ in range(2000):
            if len(calls) == times and await preferences.query(_preferred) == tasks:
                return
            await asyncio.sleep(0.005)

    await chosen(1, 5)
    drawn = await preferences.query(_drawn)
    [task] = await preferences.next_tasks("ann")
    assert task.task_id == drawn[-1]
    await preferences.record([answer(task, "ann")])
    await chosen(2, 4)
    running.cancel()
    assert calls == [0, 1]
    assert (await preferences.next_tasks("ann"))[0].task_id == drawn[-2]


def _drawn(session: Session) -> list[str]:
    return [task.task_id for task in open_tasks(session, 100)]


def _preferred(session: Session) -> int:
    waiting = (TaskRow.priority != 0, TaskRow.answered.is_(False))
    return session.scalar(select(func.count()).select_from(TaskRow).where(*waiting)) or 0


async def test_active_choice_fits_the_port(preferences: Preferences) -> None:
    """Of a pair compared five times and one never compared, the one never compared goes out first."""
    games = [Game("i/a", "i/b", 1.0, "ann")] * 5
    tasks = [OpenTask("known", "i/a", "i/b"), OpenTask("unknown", "j/a", "j/b")]
    assert choose(games, tasks)[0] == "unknown"
    await preferences.upload([item(n, "a", "b", "c") for n in range(4)])
    await preferences.choose(choose, limit=100)
    assert len(await preferences.next_tasks("ann", limit=20)) == 12


async def test_answers_that_come_together_are_each_told_theirs(preferences: Preferences) -> None:
    """Twenty pages at once: each gets the outcome of its own answer, in few transactions."""
    await preferences.upload([item(n) for n in range(20)])
    units = [(await preferences.next_units(f"ann{n}"))[0] for n in range(20)]

    def said(n: int, unit_id: str) -> UnitAnswer:
        return UnitAnswer(annotator=f"ann{n}", unit_id=unit_id, kind="pair", revision=1, ranks=(1, 2))

    answers = [said(n, unit.unit_id if n != 7 else "nothing") for n, unit in enumerate(units)]
    outcomes = await asyncio.gather(*(preferences.answer([one]) for one in answers))
    assert [outcome for [outcome] in outcomes[:7]] == [Outcome(1)] * 7
    assert "nothing" in outcomes[7][0].refused
    assert (await preferences.statistics()).comparisons == 19


async def test_a_failing_database_is_told_to_everybody_who_waits(
    preferences: Preferences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page is told that its answer is kept when it is not, and the next one is tried."""
    await preferences.upload([item(1)])
    [unit] = await preferences.next_units("ann")
    said = UnitAnswer(annotator="ann", unit_id=unit.unit_id, kind="pair", revision=1, ranks=(1, 2))

    def fails(*_: object) -> list[Outcome]:
        raise Unavailable("the database cannot be used")

    with monkeypatch.context() as patched:
        patched.setattr(PreferenceStore, "answer", fails)
        told = await asyncio.gather(*(preferences.answer([said]) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, Unavailable) for one in told)
    assert await preferences.answer([said]) == [Outcome(1)]
