"""What pages say: late, twice, taken back, about what is not theirs. On SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import Mismatch
from services.preference.answering import Outcome, UnitAnswer
from services.preference.domain import Choice, plan_tasks
from services.preference.store import PreferenceStore
from tests.unit.preference.builders import Clock, answer, item, preferred, said


def test_an_answer_can_be_taken_back_and_given_anew(opened: Callable[..., PreferenceStore]) -> None:
    """Answer, undo, answer otherwise: the last one stands once; copies that come late change nothing."""
    store = opened()
    store.upload([item(1)])
    [unit] = store.next_units("ann")
    one, back, two = (
        said(unit, "ann", 1, 2, revision=10),
        said(unit, "ann", revision=20, withdrawn=True),
        said(unit, "ann", 2, 1, revision=30),
    )
    first, second = unit.shown("ann")
    assert store.answer([one]) == [Outcome(1)]
    assert store.answer([back]) == [Outcome(1)]
    assert preferred(store) == []
    assert store.next_units("bob") == []  # it is leased to ann again
    assert [again.unit_id for again in store.next_units("ann")] == [unit.unit_id]
    assert store.answer([one]) == [Outcome(0, overtaken=True)]  # a late copy of what was taken back
    assert store.answer([two, two, back, one]) == [Outcome(1), Outcome(0), Outcome(0), Outcome(0)]
    assert preferred(store) == [second]
    assert first != second
    assert store.statistics().tasks_open == 0


def test_an_answer_and_its_undo_that_come_together_hold_the_task(
    opened: Callable[..., PreferenceStore], clock: Clock
) -> None:
    """As after an hour without a connection, when the lease of before is over."""
    store = opened()
    store.upload([item(1)])
    [unit] = store.next_units("ann")
    clock.now += 3600
    both = [said(unit, "ann", 1, 2, revision=1), said(unit, "ann", revision=2, withdrawn=True)]
    assert store.answer(both) == [Outcome(1), Outcome(1)]
    assert store.next_units("bob") == []
    assert [again.unit_id for again in store.next_units("ann")] == [unit.unit_id]


def test_answers_about_large_items_go_together(tmp_path: Path) -> None:
    """Beside a ranking all pairs of their items are looked at: more than a database takes ids of in one question."""
    store = PreferenceStore(f"sqlite:///{tmp_path / 'large.db'}")
    large, ranked = [item(n, *map(str, range(32))) for n in range(70)], item(99, *"abc")
    store.upload([*large, ranked])
    answers = [
        UnitAnswer(
            annotator="ann",
            unit_id=min(task.task_id for task in plan_tasks(one, 1)),
            kind="ranking" if one is ranked else "pair",
            revision=1,
            ranks=tuple(range(1, 4 if one is ranked else 3)),
        )
        for one in (*large, ranked)
    ]
    assert [outcome.new for outcome in store.answer(answers)] == [1] * 70 + [3]
    store.close()


def test_what_was_taken_back_by_a_fast_clock_can_be_answered_by_a_slow_one(
    opened: Callable[..., PreferenceStore],
) -> None:
    """A unit says the highest revision with which one took it back oneself, of a ranking any of its pairs; an answer
    above it is kept, whatever the clock says, and one below it is not, as its page is told."""
    store = opened()
    store.upload([item(1), item(2, "a", "b", "c"), replace(item(3), annotators=2)])
    units = store.next_units("ann", limit=3)
    assert {unit.revision for unit in units} == {0}
    order = {2: (1, 2), 3: (1, 2, 3)}
    ahead = [said(unit, "ann", *order[len(unit.shown("ann"))], revision=1000) for unit in units]
    store.answer(ahead + [replace(one, withdrawn=True, revision=2000 + n) for n, one in enumerate(ahead)])
    behind = [replace(one, revision=1500) for one in ahead]
    assert store.answer(behind) == [Outcome(0, overtaken=True)] * 3  # said before, as far as clocks tell
    again = {unit.unit_id: unit for unit in store.next_units("ann", limit=3)}
    assert [again[unit.unit_id].revision for unit in units] == [2000, 2001, 2002]
    raised = [replace(one, revision=again[one.unit_id].revision + 1) for one in ahead]
    assert [bool(outcome.new) for outcome in store.answer(raised)] == [True] * 3
    [other] = store.next_units("bob")
    assert (other.item.item_id, other.revision) == ("item-3", 0)


def test_a_later_word_replaces_an_earlier_one(opened: Callable[..., PreferenceStore]) -> None:
    """From two pages of one person the higher revision stands, in whichever order they arrive."""
    store = opened()
    store.upload([item(1), item(2)])
    one, two = store.next_units("ann", limit=2)
    store.answer([said(one, "ann", 1, 2, revision=5), said(one, "ann", 2, 1, revision=6)])
    store.answer([said(two, "ann", 2, 1, revision=6), said(two, "ann", 1, 2, revision=5)])
    assert sorted(preferred(store)) == sorted([one.shown("ann")[1], two.shown("ann")[1]])


def test_an_old_answer_stands(opened: Callable[..., PreferenceStore], clock: Clock) -> None:
    """After undo_seconds an answer is neither taken back nor replaced; the page is told why."""
    store = opened(undo_seconds=100)
    store.upload([item(1)])
    [unit] = store.next_units("ann")
    store.answer([said(unit, "ann", 1, 2, revision=1)])
    clock.now += 101
    for late in (said(unit, "ann", revision=2, withdrawn=True), said(unit, "ann", 2, 1, revision=2)):
        [outcome] = store.answer([late])
        assert "older than 100 s" in outcome.refused
    assert preferred(store) == [unit.shown("ann")[0]]


def test_a_late_answer_from_a_page_is_kept(opened: Callable[..., PreferenceStore], clock: Clock) -> None:
    """Offline past the lease while somebody else answered: both answers are there. Over gRPC it is refused."""
    store = opened()
    store.upload([item(1)])
    [unit] = store.next_units("ann")
    clock.now += 61
    [theirs] = store.next_tasks("bob")
    store.record([answer(theirs, "bob")])
    with pytest.raises(Mismatch, match="another answer already, by bob"):
        store.record([answer(unit.tasks[0], "ann")])
    assert store.answer([said(unit, "ann", 1, 2)]) == [Outcome(1)]
    assert store.statistics().comparisons_by_annotator == {"ann": 1, "bob": 1}


def test_a_wrong_answer_stops_no_other(opened: Callable[..., PreferenceStore]) -> None:
    """Of four answers sent together two are wrong: these are refused with the reason, the others kept."""
    store = opened()
    store.upload([item(1), item(2)])
    one, two = store.next_units("ann", limit=2)
    wrong = replace(said(one, "ann", 1, 2), unit_id="nothing")
    outcomes = store.answer(
        [wrong, said(one, "ann", 1, 2), said(two, "ann", 1, 5), said(two, "ann", choice=Choice.SKIP)]
    )
    assert [outcome.new for outcome in outcomes] == [0, 1, 0, 1]
    assert "nothing is not known" in outcomes[0].refused
    assert "expected places of 1 to 2" in outcomes[2].refused
    assert store.statistics().skipped == 1


def test_a_unit_that_cannot_be_stops_no_other(opened: Callable[..., PreferenceStore]) -> None:
    """A NUL in one answer's unit costs that answer alone, not the transaction that it shares."""
    store = opened()
    store.upload([item(1)])
    [unit] = store.next_units("ann")
    strange = replace(said(unit, "bob", 1, 2), unit_id="a\0")
    outcomes = store.answer([strange, said(unit, "ann", 1, 2)])
    assert outcomes == [Outcome(refused="task a\0 is not known"), Outcome(1)]


def test_answers_stay_within_the_annotator_s_campaign(opened: Callable[..., PreferenceStore]) -> None:
    """Pairs, rankings and undoing alike are refused elsewhere and stop no other; without a campaign all are kept."""
    store = opened()
    store.upload([item(1, campaign="a"), item(2, "x", "y", "z", campaign="a"), item(3, campaign="b")])
    units = {unit.item.item_id: unit for unit in store.next_units("ann", limit=3)}
    pair, ranking, own = (units[f"item-{n}"] for n in (1, 2, 3))
    outcomes = store.answer(
        [
            said(pair, "ann", 1, 2, campaign="b"),
            said(ranking, "ann", 1, 2, 3, campaign="b"),
            said(own, "ann", 1, 2, campaign="b"),
        ]
    )
    assert [outcome.new for outcome in outcomes] == [0, 0, 1]
    assert [outcome.refused for outcome in outcomes[:2]] == [
        f"task {unit.unit_id} is not known" for unit in (pair, ranking)
    ]
    assert store.answer([said(pair, "ann", 1, 2), said(ranking, "ann", 1, 2, 3)]) == [Outcome(1), Outcome(3)]
    [undone] = store.answer([said(pair, "ann", revision=2, withdrawn=True, campaign="b")])
    assert undone.refused
    assert store.statistics().comparisons == 5
