"""The store: idempotence, leases, order, durability, counts."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from services.common.errors import (
    AlreadyExists,
    ConfigError,
    Corrupted,
    InvalidInput,
    Mismatch,
    NotFound,
    StorageFull,
    Unavailable,
)
from services.preference.accounts import Person, new_person
from services.preference.database import Database, open_engine
from services.preference.domain import Choice, Comparison, Item, Statistics, Subject, Version, plan_tasks
from services.preference.ratings import Game
from services.preference.store import PreferenceStore, Uploaded
from services.preference.tables import ItemRow
from tests.unit.preference.builders import Clock, answer, item


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reopen(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., PreferenceStore]]:
    opened: list[PreferenceStore] = []

    def make(seed: int = 1, name: str = "p.db") -> PreferenceStore:
        opened.append(
            PreferenceStore(f"sqlite:///{tmp_path / name}", lease_seconds=60, seed=seed, clock=clock)
        )
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[PreferenceStore]:
    """On SQLite and on PostgreSQL."""
    opened = PreferenceStore(database_url, lease_seconds=60, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def lite(reopen: Callable[..., PreferenceStore]) -> PreferenceStore:
    return reopen()


def test_upload_is_idempotent_by_item_id(store: PreferenceStore) -> None:
    """An item that is there, also earlier in the same upload, is left alone, in whichever order its answers come."""
    assert store.upload([item(1), item(2)]) == Uploaded(2, 0)
    swapped = replace(item(2), candidates=item(2).candidates[::-1])
    assert store.upload([swapped, item(3), item(3, sources=("a", "b"))]) == Uploaded(1, 2)
    tasks = store.next_tasks("ann", limit=10)
    assert {task.item.item_id: task.item for task in tasks} == {f"item-{n}": item(n) for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(item(1), prompt=item(2).prompt), "another prompt"),
        (item(1, "one", "three"), "other answers"),
        (item(1, "one", "two", "three"), "other answers"),
        (item(1, campaign="spring"), "another campaign"),
    ],
)
def test_an_item_id_stands_for_one_question(store: PreferenceStore, other: Item, says: str) -> None:
    """Another one under its id is refused and named, and nothing of its upload is kept; within an upload alike."""
    store.upload([item(1)])
    for upload in ([item(2), other], [item(3), replace(item(1), item_id="x"), replace(other, item_id="x")]):
        with pytest.raises(
            AlreadyExists, match=rf"^item {upload[-1].item_id} is there already, with {says}$"
        ):
            store.upload(upload)
    assert store.statistics().items == 1


def test_k_candidates_make_every_pair_once(store: PreferenceStore) -> None:
    """Four candidates make 4 * 3 / 2 = 6 tasks, each another pair."""
    store.upload([item(1, "a", "b", "c", "d")])
    tasks = store.next_tasks("ann", limit=10)
    pairs = {frozenset((task.first_candidate_id, task.second_candidate_id)) for task in tasks}
    assert len(tasks) == len(pairs) == 6


def test_items_come_back_whole(store: PreferenceStore) -> None:
    """Prompt, candidates in their order, sources and versions survive the database."""
    whole = item(1, "ä \n\t\U0001f600", "", campaign="spring", sources=("policy@0", "policy@1"))
    versioned = replace(whole.candidates[0], version=Version(epoch=2, step=2**62, digest="ab"))
    whole = replace(whole, candidates=(versioned, whole.candidates[1]))
    store.upload([whole])
    assert store.next_tasks("ann")[0].item == whole


def test_order_and_sides_follow_the_seed(reopen: Callable[..., PreferenceStore]) -> None:
    """The same seed presents the same; another one otherwise; about half of the sides are swapped."""
    items = [item(n) for n in range(200)]

    def presented(seed: int, name: str, upload: list[Item]) -> list[tuple[str, str]]:
        store = reopen(seed, name)
        store.upload(upload)
        return [(task.item.item_id, task.first_candidate_id) for task in store.next_tasks("ann", limit=200)]

    first = presented(1, "a.db", items)
    assert presented(1, "b.db", items[::-1]) == first
    assert presented(2, "c.db", items) != first
    assert [name for name, _ in first] != [one.item_id for one in items]
    assert 70 <= sum(side == "c0" for _, side in first) <= 130  # 4 standard deviations


def test_a_leased_task_goes_to_nobody_else_until_the_lease_ends(store: PreferenceStore, clock: Clock) -> None:
    """Two annotators get different tasks; what the first does not answer in time goes to the second."""
    store.upload([item(1), item(2)])
    mine = store.next_tasks("ann")[0]
    theirs = store.next_tasks("bob", limit=5)
    assert mine.lease_until == clock.now + 60
    assert len(theirs) == 1
    assert theirs[0].task_id != mine.task_id
    clock.now += 59.9
    store.record([answer(theirs[0], "bob")])
    assert store.next_tasks("bob", limit=5) == []
    clock.now += 0.1
    assert [task.task_id for task in store.next_tasks("bob", limit=5)] == [mine.task_id]


def test_asking_again_gives_the_same_tasks_first(store: PreferenceStore) -> None:
    """An annotator whose answer from NextTask was lost gets the same tasks, then more."""
    store.upload([item(n) for n in range(5)])
    before = [task.task_id for task in store.next_tasks("ann", limit=2)]
    again = [task.task_id for task in store.next_tasks("ann", limit=3)]
    assert again[:2] == before
    assert len(set(again)) == 3


def test_released_tasks_are_free_at_once(store: PreferenceStore) -> None:
    """What a leaving annotator gives back, another one gets without waiting."""
    store.upload([item(1), item(2)])
    store.next_tasks("ann", limit=2)
    assert store.next_tasks("bob", limit=2) == []
    assert store.release("ann") == 2
    assert len(store.next_tasks("bob", limit=2)) == 2


def test_recording_is_idempotent_per_task(store: PreferenceStore) -> None:
    """The same answer again changes nothing; another answer, or another annotator's, is refused."""
    store.upload([item(1)])
    task = store.next_tasks("ann")[0]
    said = answer(task, "ann", Choice.SECOND)
    assert store.record([said]) == 1
    assert store.record([said, said]) == 0
    swapped = replace(
        said,
        first_candidate_id=task.second_candidate_id,
        second_candidate_id=task.first_candidate_id,
        choice=Choice.FIRST,
    )
    assert store.record([swapped]) == 0
    for other in (answer(task, "ann", Choice.FIRST), answer(task, "ann", Choice.TIE), answer(task, "bob")):
        with pytest.raises(Mismatch, match="another answer already, by ann"):
            store.record([other])
    assert store.statistics().comparisons == 1


def test_unknown_tasks_and_lost_leases_are_refused(store: PreferenceStore, clock: Clock) -> None:
    """NOT_FOUND for a task that is not there; FAILED_PRECONDITION while someone else holds the lease."""
    store.upload([item(1)])
    task = store.next_tasks("ann")[0]
    with pytest.raises(NotFound, match="task nothing"):
        store.record([replace(answer(task, "ann"), task_id="nothing")])
    with pytest.raises(Mismatch, match="leased to someone else"):
        store.record([answer(task, "bob")])
    clock.now += 60
    assert store.next_tasks("bob")[0].task_id == task.task_id
    with pytest.raises(Mismatch, match="leased to someone else"):
        store.record([answer(task, "ann")])
    clock.now += 60  # nobody took it since: late work is not thrown away
    assert store.record([answer(task, "ann")]) == 1
    assert (Mismatch.status, NotFound.status) == ("FAILED_PRECONDITION", "NOT_FOUND")


def test_labels_that_were_made_elsewhere_are_all_kept(store: PreferenceStore) -> None:
    """Though the task has its answer, or is leased to somebody; what one annotator said once is not said twice."""
    store.upload([item(1), item(2)])
    first, held = store.next_tasks("ann", limit=2)
    store.record([answer(first, "ann")])
    said = [answer(first, "bob", Choice.SECOND), answer(held, "bob"), answer(first, "cat")]
    with pytest.raises(Mismatch):
        store.record(said)
    assert store.record([replace(one, margin=2.5) for one in said], made_elsewhere=True) == 3
    assert store.record(said, made_elsewhere=True) == 0
    counts = store.statistics()
    assert (counts.comparisons, counts.tasks_open) == (4, 0)
    assert {row.annotator: row.margin for row, _ in store.page().rows if row.task_id == first.task_id} == {
        "ann": None,
        "bob": 2.5,
        "cat": 2.5,
    }


def test_a_batch_is_recorded_whole_or_not_at_all(store: PreferenceStore) -> None:
    """One unknown task in a batch leaves nothing of it behind."""
    store.upload([item(n) for n in range(3)])
    tasks = store.next_tasks("ann", limit=3)
    batch = [answer(task, "ann") for task in tasks]
    with pytest.raises(NotFound):
        store.record([*batch, replace(batch[0], task_id="nothing")])
    assert store.statistics().comparisons == 0
    assert store.record(batch) == 3
    assert store.statistics().tasks_open == 0


def test_candidates_must_be_the_task_s(store: PreferenceStore) -> None:
    """A comparison of other candidates or another item is refused; none given means the task's."""
    store.upload([item(1, "a", "b", "c")])
    task = store.next_tasks("ann")[0]
    for wrong in (
        replace(answer(task, "ann"), second_candidate_id=task.first_candidate_id),
        replace(answer(task, "ann"), item_id="item-2"),
    ):
        with pytest.raises(InvalidInput, match="compares"):
            store.record([wrong])
    store.record([replace(answer(task, "ann"), first_candidate_id="", second_candidate_id="")])
    recorded = store.page().rows[0][0]
    assert recorded.first_candidate_id == task.first_candidate_id


def test_pages_are_in_order_of_time_and_complete(store: PreferenceStore, clock: Clock) -> None:
    """Pages follow each other by recorded time without gaps, with the items if asked for, per campaign."""
    store.upload([item(n, campaign="even" if n % 2 == 0 else "odd") for n in range(10)])
    for task in store.next_tasks("ann", limit=10):
        clock.now += 1 if task.item.item_id != "item-3" else 0  # two at the same time
        store.record([answer(task, "ann")])
    seen: list[Comparison] = []
    after, pages = None, 0
    while pages == 0 or after is not None:
        page = store.page(after=after, items=True, limit=3)
        assert all(one is not None and one.item_id == comparison.item_id for comparison, one in page.rows)
        seen += [comparison for comparison, _ in page.rows]
        after, pages = page.end, pages + 1
    assert len(seen) == len({comparison.task_id for comparison in seen}) == 10
    assert [one.recorded_at for one in seen] == sorted(one.recorded_at for one in seen)
    even = store.page(campaign="even").rows
    assert sorted(comparison.item_id for comparison, _ in even) == [f"item-{n}" for n in range(0, 10, 2)]
    assert all(one is None for _, one in even)


def test_statistics_count_what_was_said(store: PreferenceStore) -> None:
    """Ties and skips are counted apart, per campaign and per annotator."""
    store.upload([item(n, campaign="c") for n in range(5)] + [item(9, campaign="other")])
    choices = [Choice.FIRST, Choice.TIE, Choice.SKIP, Choice.FLAG]
    tasks = store.next_tasks("ann", campaign="c", limit=4)
    store.record([answer(task, "ann", said) for task, said in zip(tasks, choices, strict=True)])
    expected = Statistics(
        items=5, tasks_open=1, comparisons=4, ties=1, skipped=2, comparisons_by_annotator={"ann": 4}
    )
    assert store.statistics(campaign="c") == expected
    assert store.statistics() == replace(expected, items=6, tasks_open=2)
    assert store.statistics(campaign="nobody") == Statistics()


def test_games_of_candidates_and_of_sources(store: PreferenceStore) -> None:
    """Candidates are named within their item, sources by themselves; skipped comparisons are no games."""
    store.upload([item(n, sources=("old", "new")) for n in range(3)])
    tasks = store.next_tasks("ann", limit=3)
    said = [Choice.FIRST, Choice.TIE, Choice.SKIP]
    store.record([answer(task, "ann", choice) for task, choice in zip(tasks, said, strict=True)])
    names = {"c0": "old", "c1": "new"}
    expected = [
        (task.item.item_id, task.first_candidate_id, task.second_candidate_id, score)
        for task, score in zip(tasks, (1.0, 0.5), strict=False)
    ]
    assert store.games(Subject.CANDIDATE) == [
        Game(f"{i}/{a}", f"{i}/{b}", score, "ann") for i, a, b, score in expected
    ]
    assert store.games(Subject.SOURCE) == [
        Game(names[a], names[b], score, "ann") for _, a, b, score in expected
    ]


def test_everything_is_there_after_reopening(reopen: Callable[..., PreferenceStore]) -> None:
    """A second store over the same file sees what the first one acknowledged, without its closing."""
    first = reopen()
    first.upload([item(1), item(2)])
    task = first.next_tasks("ann")[0]
    first.record([replace(answer(task, "ann", Choice.TIE), confidence=0.25, comment="hm")])
    recorded = reopen().page(items=True).rows
    assert [(c.choice, c.confidence, c.comment, c.annotator) for c, _ in recorded] == [
        (Choice.TIE, 0.25, "hm", "ann")
    ]


def test_sqlite_syncs_every_commit(lite: PreferenceStore, tmp_path: Path) -> None:
    """The file is in WAL mode, and our connections use synchronous=FULL (2)."""
    engine = open_engine(f"sqlite:///{tmp_path / 'p.db'}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()


def test_an_annotator_keeps_its_rule(store: PreferenceStore) -> None:
    """A built-in annotator's name stands for one rule: judging by another one needs another name."""
    store.register("auto", rule="sentiment", digest="1")
    store.register("auto", rule="sentiment", digest="1")
    with pytest.raises(Mismatch, match="judged by sentiment until now"):
        store.register("auto", rule="length", digest="2")


def test_a_name_is_a_person_s_or_a_built_in_annotator_s(store: PreferenceStore) -> None:
    """Whoever has it first: the other is refused in one line, before there is any label and also by a renewal."""

    def invite(name: str, renew: bool = False) -> str:
        person = Person(name=name, role="annotator")
        return store.change(lambda session: new_person(session, person, now=0, renew=renew))

    store.register("auto", rule="sentiment", digest="1")
    for renew in (False, True):
        with pytest.raises(
            AlreadyExists, match=r"^auto is a built-in annotator \(sentiment\): give the person"
        ):
            invite("auto", renew)
    invite("ann")
    with pytest.raises(Mismatch, match=r"^annotator ann: a person has that name"):
        store.register("ann", rule="sentiment", digest="1")
    invite("ann", renew=True)
    store.upload([item(1)])
    store.record([answer(store.next_tasks("ann")[0], "ann")])
    invite("ann", renew=True)


def test_campaigns_that_cannot_be_are_named(store: PreferenceStore) -> None:
    """A NUL, which PostgreSQL cannot compare with, is the caller's mistake in every question about a campaign."""
    for ask in (
        lambda: store.next_tasks("ann", campaign="a\0"),
        lambda: store.next_units("ann", campaign="a\0"),
        lambda: store.page(campaign="a\0"),
        lambda: store.games(Subject.SOURCE, campaign="a\0"),
        lambda: store.statistics(campaign="a\0"),
    ):
        with pytest.raises(InvalidInput) as refused:
            ask()
        assert list(refused.value.violations) == ["campaign"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (replace(item(1), item_id=""), "items[0].item_id"),
        (replace(item(1), item_id="x" * 201), "items[0].item_id"),
        (replace(item(1), prompt=()), "items[0].prompt"),
        (item(1, "only"), "items[0].candidates"),
        (item(1, *map(str, range(33))), "items[0].candidates"),
        (replace(item(1), candidates=item(1).candidates[:1] * 2), "items[0].candidates"),
        (item(1, "a\0", "b"), "items[0].candidates[0].text"),
        (
            replace(
                item(1),
                candidates=(
                    replace(item(1).candidates[0], version=Version(epoch=2**63, step=0)),
                    item(1).candidates[1],
                ),
            ),
            "items[0].candidates[0].version.epoch",
        ),
    ],
)
def test_bad_items_are_named(store: PreferenceStore, wrong: Item, field: str) -> None:
    """An item that cannot be accepted is refused with the path of its field, and nothing is stored."""
    with pytest.raises(InvalidInput) as caught:
        store.upload([wrong])
    assert list(caught.value.violations) == [field]
    assert store.statistics().items == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"annotator": ""}, "comparisons[0].annotator"),
        ({"task_id": ""}, "comparisons[0].task_id"),
        ({"confidence": 1.1}, "comparisons[0].confidence"),
        ({"confidence": math.nan}, "comparisons[0].confidence"),
        ({"margin": math.inf}, "comparisons[0].margin"),
        ({"comment": "\0"}, "comparisons[0].comment"),
    ],
)
def test_bad_comparisons_are_named(store: PreferenceStore, change: dict[str, object], field: str) -> None:
    """A comparison that cannot be accepted is refused with the path of its field."""
    store.upload([item(1)])
    task = store.next_tasks("ann")[0]
    with pytest.raises(InvalidInput) as caught:
        store.record([replace(answer(task, "ann"), **change)])  # type: ignore[arg-type]
    assert list(caught.value.violations) == [field]


def test_bad_requests_for_tasks(store: PreferenceStore) -> None:
    """Tasks go to somebody, and not without bound."""
    with pytest.raises(InvalidInput, match="annotator"):
        store.next_tasks("")
    with pytest.raises(InvalidInput, match="1 to 1000"):
        store.next_tasks("ann", limit=1001)


@pytest.mark.parametrize("url", ["preference.db", "sqlite://", "sqlite:///:memory:", "nonsense:///x"])
def test_urls_that_cannot_be_used(url: str) -> None:
    """A URL that names no durable database is a ConfigError, in one line."""
    with pytest.raises(ConfigError) as caught:
        PreferenceStore(url)
    assert "\n" not in str(caught.value)


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    """A missing folder is UNAVAILABLE; a file that is no database is DATA_LOSS; each in one line."""
    with pytest.raises(Unavailable, match="unable to open database file"):
        PreferenceStore(f"sqlite:///{tmp_path}/nowhere/p.db")
    (tmp_path / "text.db").write_text("this is no database at all, " * 100)
    with pytest.raises(Corrupted, match="not a database"):
        PreferenceStore(f"sqlite:///{tmp_path / 'text.db'}")


def test_a_full_disk_is_said_and_leaves_nothing_behind(lite: PreferenceStore, tmp_path: Path) -> None:
    """Where SQLite can write no further page, the error is RESOURCE_EXHAUSTED and the transaction is undone."""
    database = Database(f"sqlite:///{tmp_path / 'p.db'}")

    def write(session: Session) -> None:
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar()
        session.connection().exec_driver_sql(f"PRAGMA max_page_count={pages}")
        session.add(ItemRow(item_id="big", campaign="", prompt_id="", prompt=[{"content": "x" * 1_000_000}]))

    with pytest.raises(StorageFull, match="no room"):
        database.transaction(write)
    database.close()
    assert lite.statistics().items == 0


def test_a_database_of_another_schema_is_refused(lite: PreferenceStore, tmp_path: Path) -> None:
    """A database that another version wrote is refused, not guessed at."""
    lite.close()
    with sqlite3.connect(tmp_path / "p.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")
    connection.close()
    with pytest.raises(ConfigError, match="schema 0099"):
        PreferenceStore(f"sqlite:///{tmp_path / 'p.db'}")


def test_tasks_of_an_item_do_not_depend_on_the_order_of_its_candidates() -> None:
    """The same pair is the same task with the same sides whichever candidate was uploaded first."""
    one = item(1, "a", "b", "c")
    other = replace(one, candidates=one.candidates[::-1])
    assert sorted(map(repr, plan_tasks(one, 1))) == sorted(map(repr, plan_tasks(other, 1)))
