"""Who gets what: overlap, gold, rankings, undo, late answers, the chooser's order. On SQLite and PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput
from services.preference.answering import Outcome
from services.preference.assignment import Assignment, Unit, gold_due, shown_order, wanted_answers
from services.preference.database import Database
from services.preference.domain import Choice, Subject, plan_tasks
from services.preference.store import PreferenceStore
from services.preference.tables import ItemRow, TaskRow
from tests.fakes.postgres import Postgres
from tests.unit.preference.builders import Clock, answer, item, said


def test_the_share_of_items_gets_so_many_annotators() -> None:
    """Of 2,000 items, 30 % are for three annotators (within 4 standard deviations); an item's own number goes first."""
    how = Assignment(overlap_annotators=3, overlap_share=0.3)
    counts = Counter(wanted_answers(item(n), how) for n in range(2000))
    assert set(counts) == {1, 3}
    assert abs(counts[3] - 600) <= 4 * (2000 * 0.3 * 0.7) ** 0.5
    assert wanted_answers(replace(item(1), annotators=5), how) == 5
    assert {
        wanted_answers(item(n), Assignment(overlap_annotators=2, overlap_share=1)) for n in range(50)
    } == {2}


def test_an_overlapping_task_goes_to_each_annotator_once(opened: Callable[..., PreferenceStore]) -> None:
    """For three annotators: one after the other gets it, nobody twice, a fourth not at all."""
    store = opened(overlap_annotators=3, overlap_share=1.0)
    store.upload([item(1)])
    for name in ("ann", "bob", "cid"):
        [task] = store.next_tasks(name, limit=5)
        assert store.next_tasks("dan") == []  # leased to one at a time
        store.record([answer(task, name)])
        assert store.next_tasks(name) == []
    assert store.next_tasks("dan") == []
    assert store.statistics().comparisons_by_annotator == {"ann": 1, "bob": 1, "cid": 1}
    assert store.statistics().tasks_open == 0


def test_gold_is_due_once_in_so_many() -> None:
    """With one in ten: at the first answer, then whenever ten answers have passed since."""
    due, golds = [], 0
    for answers in range(40):
        if gold_due(answers, golds, 10):
            due.append(answers)
            golds += 1
    assert due == [0, 10, 20, 30]
    assert not gold_due(0, 0, 0)


def test_gold_goes_to_everybody_and_counts_in_no_rating(opened: Callable[..., PreferenceStore]) -> None:
    """Two annotators get each gold item once, both at the same time, and games, counts and pages leave it out."""
    store = opened(gold_every=2)
    store.upload([replace(item(n, sources=("a", "b")), gold_order=("c1", "c0")) for n in (1, 2)])
    store.upload([item(n, sources=("a", "b")) for n in range(10, 16)])
    assert store.statistics().tasks_open == 6
    both = [store.next_tasks(name)[0] for name in ("ann", "bob")]
    assert all(task.item.gold_order == ("c1", "c0") for task in both)
    golds = 0
    for _ in range(6):
        [task] = store.next_tasks("ann")
        golds += bool(task.item.gold_order)
        store.record([answer(task, "ann")])
    assert golds == 2
    assert len(store.games(Subject.SOURCE)) == store.statistics().comparisons == len(store.page().rows) == 4
    assert len(store.page(gold=True).rows) == 6


def test_a_page_gets_one_gold_unit_at_a_time(opened: Callable[..., PreferenceStore]) -> None:
    """Of a gold item whose answers are compared in pairs, too, though all its pairs are due some time."""
    store = opened(gold_every=2)
    gold = replace(item(1, *"abcd"), gold_order=("c0", "c1", "c2", "c3"))
    store.upload([gold, *(item(n) for n in range(10, 20))])
    for rankings in (False, True):
        units = store.next_units("ann", limit=5, rankings=rankings)
        assert sorted(unit.tasks[0].item.item_id == "item-1" for unit in units) == [False] * 4 + [True]


def test_a_ranking_is_all_pairs_of_an_item(opened: Callable[..., PreferenceStore]) -> None:
    """Four answers with two in one place: five decided pairs and a tie, under one ranking_id, in one go."""
    store = opened()
    store.upload([item(1, "a", "b", "c", "d")])
    [unit] = store.next_units("ann", limit=3)
    assert unit.kind == "ranking"
    assert len(unit.tasks) == 6
    assert store.next_units("bob") == []
    shown = unit.shown("ann")
    assert store.answer([said(unit, "ann", 2, 1, 2, 3)]) == [Outcome(6)]
    order = dict(zip(shown, (2, 1, 2, 3), strict=True))
    rows = [comparison for comparison, _ in store.page().rows]
    for row in rows:
        first, second = order[row.first_candidate_id], order[row.second_candidate_id]
        expected = Choice.TIE if first == second else Choice.FIRST if first < second else Choice.SECOND
        assert row.choice is expected
        assert shown.index(row.first_candidate_id) < shown.index(row.second_candidate_id)
    assert len({row.ranking_id for row in rows}) == 1
    assert rows[0].ranking_id
    assert store.statistics().tasks_open == 0


def test_an_item_of_which_a_pair_is_taken_is_not_ranked(opened: Callable[..., PreferenceStore]) -> None:
    """Where somebody answered a pair of it already, the others are shown as pairs; so they are without rankings."""
    store = opened()
    store.upload([item(1, "a", "b", "c")])
    [task] = store.next_tasks("bob")
    store.record([answer(task, "bob")])
    store.next_units("ann", limit=5)
    assert [unit.kind for unit in store.next_units("ann", limit=5)] == ["pair", "pair"]
    store.upload([item(2, "a", "b", "c")])
    assert {unit.kind for unit in store.next_units("cid", limit=9, rankings=False)} == {"pair"}


def test_units_are_held_as_they_were(opened: Callable[..., PreferenceStore]) -> None:
    """Asking again gives the same units first, whole, however many pairs each has."""
    store = opened()
    store.upload([item(n, "a", "b", "c") for n in range(3)] + [item(n) for n in range(3, 6)])
    before = {unit.unit_id: unit.kind for unit in store.next_units("ann", limit=4)}
    again = {unit.unit_id: unit.kind for unit in store.next_units("ann", limit=4)}
    assert before == again
    assert len(before) >= 3
    others = {unit.unit_id for unit in store.next_units("bob", limit=9)}
    assert not others & set(before)


def test_sides_differ_between_annotators() -> None:
    """Over 400 annotators each of two answers is first about as often as the other; for one always the same."""
    first = Counter(shown_order("item", ["a", "b"], f"ann{n}")[0] for n in range(400))
    assert abs(first["a"] - 200) <= 40  # 4 standard deviations
    assert len({tuple(shown_order("item", ["a", "b"], "ann")) for _ in range(5)}) == 1


def test_a_page_that_goes_frees_its_own_leases_alone(
    opened: Callable[..., PreferenceStore], clock: Clock
) -> None:
    """Its tasks are free at once; those that its successor leased anew are not."""
    store = opened()
    store.upload([item(1), item(2)])
    before = store.next_units("ann", limit=2)
    clock.now += 1
    store.next_units("ann", limit=1)  # the next page holds one of them, until later
    assert store.release("ann", until=before[0].lease_until) == 1
    assert len(store.next_units("bob", limit=2)) == 1


def test_the_chooser_s_order_goes_first(opened: Callable[..., PreferenceStore]) -> None:
    """Preferred tasks go out first and in that order, then the drawn order; another preference forgets the last."""
    store = opened()
    store.upload([item(n) for n in range(6)])
    drawn = [task.task_id for task in store.open_tasks(limit=10)]
    store.prefer([drawn[4], drawn[2]])
    assert [task.task_id for task in store.next_tasks("ann", limit=3)] == [drawn[4], drawn[2], drawn[0]]
    store.release("ann")
    store.prefer([drawn[5]])
    assert [task.task_id for task in store.next_tasks("ann", limit=2)] == [drawn[5], drawn[0]]
    assert store.open_tasks(limit=2)[0].first.startswith("item-")


def test_ten_at_once_never_hold_the_same(database_url: str) -> None:
    """Ten threads with stores of their own label 60 items, each once, on either database."""
    first = PreferenceStore(database_url)
    first.upload([item(n) for n in range(60)])
    held: list[str] = []

    def work(name: str) -> None:
        store = PreferenceStore(database_url)
        while units := store.next_units(name, limit=2):
            held.extend(unit.unit_id for unit in units)
            assert all(
                outcome.new == 1 for outcome in store.answer([said(unit, name, 1, 2) for unit in units])
            )
        store.close()

    threads = [threading.Thread(target=work, args=(f"ann{n}",)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = first.statistics()
    first.close()
    assert len(held) == len(set(held)) == counts.comparisons == 60
    assert counts.tasks_open == 0


def at_once(store: PreferenceStore, names: list[str], limit: int) -> dict[str, list[Unit]]:
    """What each of them gets who ask at the same moment."""
    got: dict[str, list[Unit]] = {}
    start = threading.Barrier(len(names), timeout=30)

    def ask(name: str) -> None:
        start.wait()
        got[name] = store.next_units(name, limit=limit)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return got


def test_items_stay_whole_whoever_asks_at_once(database_url: str) -> None:
    """Four annotators at the same moment, over and over: every item is one's alone, to be ranked, and all get some."""
    store = PreferenceStore(database_url)
    store.upload([item(n, *"abcd") for n in range(20)])
    names = [f"ann{n}" for n in range(4)]
    for _ in range(10):
        got = at_once(store, names, 5)
        assert [len(got[name]) for name in names] == [5] * 4
        assert {unit.kind for units in got.values() for unit in units} == {"ranking"}
        assert len({unit.item.item_id for units in got.values() for unit in units}) == 20
        for name in names:
            store.release(name)
    store.close()


def test_an_item_that_others_are_taking_is_left_to_them(postgres_server: Postgres) -> None:
    """While an item, or one pair of it, is locked, nobody gets it whole or in parts: other items go instead."""
    url = postgres_server.url()
    store, other = PreferenceStore(url, clock=Clock()), Database(url)
    store.upload([item(n, "a", "b", "c") for n in range(4)])
    first, second, *rest = [unit.item.item_id for unit in store.next_units("ann", limit=4)]
    store.release("ann")

    def beside(session: Session) -> list[Unit]:
        session.scalars(select(ItemRow).where(ItemRow.item_id == first).with_for_update()).all()
        session.scalars(select(TaskRow).where(TaskRow.item_id == second).limit(1).with_for_update()).all()
        return store.next_units("ann", limit=4)

    units = other.transaction(beside)
    assert [(unit.kind, unit.item.item_id) for unit in units] == [("ranking", name) for name in rest]
    assert {unit.item.item_id for unit in store.next_units("bob", limit=4)} == {first, second}
    other.close()
    store.close()


@pytest.mark.parametrize(
    "call", [lambda store, _: store.release("ann"), lambda store, ids: store.prefer(ids)]
)
def test_whoever_locks_several_tasks_locks_the_least_first(
    postgres_server: Postgres, call: Callable[[PreferenceStore, list[str]], object]
) -> None:
    """While a recorder has the least task, giving back and choosing wait with none of the others in hand, in whichever
    order these lie and are named: the recorder gets them, and neither waits for ever."""
    url = postgres_server.url()
    store, other = PreferenceStore(url), Database(url)
    made = {one.item_id: next(plan_tasks(one, 1)).task_id for one in (item(n) for n in range(6))}
    backwards = sorted(range(6), key=lambda n: made[f"item-{n}"], reverse=True)
    store.upload([item(n) for n in backwards])
    ids = [made[f"item-{n}"] for n in backwards]
    assert len(store.next_tasks("ann", limit=6)) == 6
    thread = threading.Thread(target=call, args=(store, ids))

    def record(session: Session) -> int:
        def lock(*tasks: str) -> int:
            rows = select(TaskRow).where(TaskRow.task_id.in_(tasks)).with_for_update(nowait=True)
            return len(session.scalars(rows).all())

        assert lock(ids[-1]) == 1
        thread.start()
        ends = time.monotonic() + 30
        while not session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
            assert time.monotonic() < ends
            time.sleep(0.01)
        return lock(*ids)

    assert other.transaction(record) == 6
    thread.join(30)
    assert not thread.is_alive()
    other.close()
    store.close()


def test_gold_orders_must_name_every_candidate(opened: Callable[..., PreferenceStore]) -> None:
    """A known answer is a whole order, or there is none."""
    with pytest.raises(InvalidInput) as caught:
        opened().upload([replace(item(1), gold_order=("c0",)), replace(item(2), annotators=101)])
    assert list(caught.value.violations) == ["items[0].gold_order", "items[1].annotators"]
