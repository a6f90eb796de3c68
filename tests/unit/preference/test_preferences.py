"""The door to the store: what an export of several pages says while people go on, and what reliability goes by."""

from __future__ import annotations

from dataclasses import replace

from services.preference.answering import UnitAnswer
from services.preference.preferences import Preferences
from services.preference.ratings import RatingMethod
from services.preference.store import PreferenceStore
from tests.unit.preference.builders import Clock, answer, item


async def test_a_label_that_changes_during_an_export_comes_once(database_url: str) -> None:
    """One that was read is not read again with another verdict; one that was not comes as it is by then."""
    clock = Clock()
    preferences = Preferences(lambda: PreferenceStore(database_url, clock=clock), RatingMethod())
    await preferences.open()
    await preferences.upload([item(n) for n in range(501)])  # pages have 500
    units = await preferences.next_units("ann", limit=501)

    def said(number: int, revision: int, *ranks: int) -> UnitAnswer:
        return UnitAnswer(
            annotator="ann", unit_id=units[number].unit_id, kind="pair", revision=revision, ranks=ranks
        )

    await preferences.answer([said(number, 1, 1, 2) for number in range(501)])
    rows = []
    async for comparison, _ in preferences.comparisons():
        rows.append(comparison)
        if len(rows) == 1:
            clock.now += 1
            await preferences.answer([said(0, 2, 2, 1), said(500, 2, 2, 1)])
    assert [row.task_id for row in rows] == [unit.unit_id for unit in units]
    shown = [units[number].shown("ann") for number in (0, 500)]
    assert [rows[0].preferred, rows[500].preferred] == [shown[0][0], shown[1][1]]
    assert (await preferences.statistics()).comparisons == 501
    await preferences.close()


async def test_reliability_where_each_item_has_one_source(database_url: str) -> None:
    """Samples of one policy for each prompt say nothing of sources: then the answers show who is reliable."""
    preferences = Preferences(lambda: PreferenceStore(database_url), RatingMethod())
    await preferences.open()
    one_source = [item(n, "a", "b", "c", sources=("policy@0",) * 3) for n in range(4)]
    await preferences.upload([replace(one, annotators=2) for one in one_source])
    for name in ("ann", "bob"):
        tasks = await preferences.next_tasks(name, limit=12)
        await preferences.record([answer(task, name) for task in tasks])
    found = await preferences.reliability()
    assert {one.annotator: one.comparisons for one in found} == {"ann": 12, "bob": 12}
    await preferences.close()
