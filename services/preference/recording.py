"""Owns what happens to an answer: kept, a repetition, a replacement, too old, refused. Inside a transaction.

of the same annotator and task            what happens
none                                      kept, unless a later one was taken back
an equal revision, the same answer        nothing: a repetition
an equal revision, another answer         Mismatch
a lower revision than the new one's       replaced, if it is not too long ago
a higher revision                         nothing: the new one is a late copy
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, Mismatch, NotFound
from services.preference.domain import Choice, Comparison
from services.preference.ranking import Pair
from services.preference.tables import ANNOTATORS, COMPARISONS, TASKS, WITHDRAWN, comparison_of

Key = tuple[str, str]  # task, annotator


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`late`: answers are kept though the task is someone else's by now, or has its answers already.

    `now` and `until`, when the lease of a task whose answer is taken back ends, in Unix seconds.
    """

    now: float
    until: float
    undo_seconds: float
    late: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a task stands: for how many answers it is, and whose it is until when (Unix seconds)."""

    pair: Pair
    wanted: int
    gold: bool
    lease_holder: str
    lease_until: float


@dataclass(slots=True)
class Book:
    """What is said of some tasks: read once, changed in memory, written at once. Nothing is written by itself."""

    rules: Rules
    tasks: dict[str, Standing]
    said: dict[Key, Comparison]
    withdrawn: dict[Key, int]  # the highest revision that was taken back
    before: dict[Key, Comparison] = field(init=False)
    taken: list[tuple[Comparison, int]] = field(default_factory=list)
    leased: dict[str, str] = field(default_factory=dict)  # task -> who took an answer back

    def __post_init__(self) -> None:
        self.before = dict(self.said)

    @classmethod
    def open(cls, session: Session, task_ids: Iterable[str], rules: Rules, *, beside: bool = False) -> Book:
        """All that is said of these tasks, `beside`: and of the others of their items.

        Their rows are locked until the transaction ends.
        """
        asked = _BESIDE if beside else _THESE
        # By the ids that were asked about, also for all tasks of their items: those may be more than a database takes.
        ids = {"ids": list(set(task_ids))}
        tasks = {row[0]: Standing(Pair(*row[:5]), *row[5:]) for row in session.execute(asked.tasks, ids)}
        answers = map(comparison_of, session.execute(asked.said, ids))
        said = {(answer.task_id, answer.annotator): answer for answer in answers}
        taken_back = session.execute(asked.taken_back, ids)
        withdrawn = {(task, annotator): most for task, annotator, most in taken_back}
        return cls(rules, tasks, said, withdrawn)

    def answer(self, comparisons: Sequence[Comparison]) -> int:
        """Note answers to different tasks, all or none; how many are new. NotFound, InvalidInput, Mismatch."""
        new = [shown for shown in map(self._shown, comparisons) if self._is_new(shown)]
        for comparison in new:
            key = (comparison.task_id, comparison.annotator)
            if key in self.said:
                self.taken.append((self.said[key], self.said[key].revision))
            self.said[key] = comparison
            self.leased.pop(comparison.task_id, None)
        return len(new)

    def withdraw(self, annotator: str, task_ids: Sequence[str], revision: int) -> int:
        """Note that answers are taken back, all or none; how many there were. Mismatch: they stand by now."""
        mine = [self.said[key] for task in task_ids if (key := (task, annotator)) in self.said]
        taken = [self._check_recent(said) for said in mine if said.revision < revision]
        for said in taken:
            key = (said.task_id, annotator)
            del self.said[key]
            self.withdrawn[key] = revision
            self.taken.append((said, revision))
            self.leased[said.task_id] = annotator
        return len(taken)

    def overtaken(self, annotator: str, task_ids: Sequence[str], revision: int) -> bool:
        """Whether a task has no answer since a wish later than `revision` took it back."""
        keys = [(task, annotator) for task in task_ids]
        return any(key not in self.said and revision <= self.withdrawn.get(key, -1) for key in keys)

    def _shown(self, comparison: Comparison) -> Comparison:
        task = self.tasks.get(comparison.task_id)
        if task is None:
            raise NotFound(f"task {comparison.task_id} is not known")
        return _as_shown(comparison, task.pair)

    def _is_new(self, comparison: Comparison) -> bool:
        """False for a repetition and a late copy. Mismatch where it cannot be kept."""
        key = (comparison.task_id, comparison.annotator)
        before = self.said.get(key)
        if before is None:
            if 0 < comparison.revision <= self.withdrawn.get(key, -1):
                return False
            if not (self.rules.late or self.tasks[comparison.task_id].gold):
                self._check_free(comparison)
            return True
        if comparison.revision < before.revision:
            return False
        same = before.preferred == comparison.preferred
        if comparison.revision == before.revision and not same:
            raise Mismatch(f"task {comparison.task_id} has another answer already, by {before.annotator}")
        if same and (comparison.revision == before.revision or before.comment == comparison.comment):
            return False
        self._check_recent(before)
        return True

    def _check_free(self, comparison: Comparison) -> None:
        task = self.tasks[comparison.task_id]
        by = [annotator for answered, annotator in self.said if answered == comparison.task_id]
        if len(by) >= task.wanted:
            raise Mismatch(f"task {comparison.task_id} has another answer already, by {by[0]}")
        if task.lease_until > self.rules.now and task.lease_holder != comparison.annotator:
            raise Mismatch(f"task {comparison.task_id} is leased to someone else by now")

    def _check_recent(self, said: Comparison) -> Comparison:
        # What was noted a moment ago has no time yet.
        if said.recorded_at and self.rules.now - said.recorded_at > self.rules.undo_seconds:
            raise Mismatch(
                f"the answer to task {said.task_id} is older than {self.rules.undo_seconds:g} s and stands"
            )
        return said

    def write(self, session: Session) -> None:
        """Bring the tables up to what is noted."""
        gone = [key for key, said in self.before.items() if self.said.get(key) is not said]
        fresh = {key: said for key, said in self.said.items() if self.before.get(key) is not said}
        if self.taken:
            session.execute(_TAKE_BACK, [_taken_values(*taken, self.rules.now) for taken in self.taken])
        if gone:
            key = tuple_(COMPARISONS.c.task_id, COMPARISONS.c.annotator)
            session.execute(delete(COMPARISONS).where(key.in_(gone)))
        if fresh:
            _know_annotators(session, {annotator for _, annotator in fresh}, self.rules.now)
            values = [_values(said, self.tasks[said.task_id], self.rules.now) for said in fresh.values()]
            session.execute(_SAY, values)
        if touched := {task for task, _ in (*gone, *fresh)} | self.leased.keys():
            answerers = {task: {name for told, name in fresh if told == task} for task in touched}
            changed = [self._task_values(task, answerers[task]) for task in sorted(touched)]
            session.execute(_CHANGE, changed)

    def _task_values(self, name: str, answerers: set[str]) -> dict[str, Any]:
        """The count of a task's answers, and whose it is now: nobody's when it has its answers."""
        task = self.tasks[name]
        answers = sum(told == name for told, _ in self.said)
        answered = answers >= task.wanted and not task.gold
        holder, until = task.lease_holder, task.lease_until
        if answered or holder in answerers:
            holder, until = "", 0.0
        taker = self.leased.get(name)
        if taker is not None and not answered and not task.gold and until <= self.rules.now:
            holder, until = taker, self.rules.until
        return {"task": name, "answers": answers, "answered": answered, "holder": holder, "until": until}


def record(session: Session, comparisons: Sequence[Comparison], rules: Rules) -> int:
    """Write all or raise: how many are new. See PreferenceStore.record."""
    book = Book.open(session, (comparison.task_id for comparison in comparisons), rules)
    new = sum(book.answer([comparison]) for comparison in comparisons)
    book.write(session)
    return new


def _as_shown(comparison: Comparison, task: Pair) -> Comparison:
    """The comparison with its item and candidates; an annotator may have shown them the other way round."""
    sides = (comparison.first_candidate_id, comparison.second_candidate_id)
    expected = (task.first_candidate_id, task.second_candidate_id)
    if sides == ("", ""):
        sides = expected
    if sides not in (expected, expected[::-1]) or comparison.item_id not in ("", task.item_id):
        raise InvalidInput(
            f"task {task.task_id} compares {expected[0]} and {expected[1]} of item {task.item_id}",
            {"first_candidate_id": expected[0], "second_candidate_id": expected[1], "item_id": task.item_id},
        )
    return replace(
        comparison, item_id=task.item_id, first_candidate_id=sides[0], second_candidate_id=sides[1]
    )


def _taken_values(said: Comparison, revision: int, now: float) -> dict[str, Any]:
    return {
        "task_id": said.task_id,
        "annotator": said.annotator,
        "choice": said.choice.value,
        "preferred": said.preferred,
        "recorded_at": said.recorded_at or now,
        "withdrawn_at": now,
        "revision": revision,
    }


def _know_annotators(session: Session, names: set[str], now: float) -> None:
    known = set(session.scalars(_KNOWN, {"names": list(names)}))
    if new := sorted(names - known):
        session.execute(insert(ANNOTATORS), [{"name": name, "first_seen": now} for name in new])


def _values(comparison: Comparison, task: Standing, now: float) -> dict[str, Any]:
    return {
        "task_id": task.pair.task_id,
        "item_id": task.pair.item_id,
        "campaign": task.pair.campaign,
        "annotator": comparison.annotator,
        "first_candidate_id": comparison.first_candidate_id,
        "second_candidate_id": comparison.second_candidate_id,
        "choice": Choice(comparison.choice).value,
        "confidence": comparison.confidence,
        "comment": comparison.comment,
        "recorded_at": now,
        "ranking_id": comparison.ranking_id,
        "seconds": comparison.seconds,
        "margin": comparison.margin,
        "revision": comparison.revision,
        "gold": task.gold,
    }


# Built once: each label asks and tells all of them, and building them anew takes longer than the database does.
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_TASK = (
    select(
        TASKS.c.task_id,
        TASKS.c.item_id,
        TASKS.c.first_candidate_id,
        TASKS.c.second_candidate_id,
        TASKS.c.campaign,
        TASKS.c.wanted,
        TASKS.c.gold,
        TASKS.c.lease_holder,
        TASKS.c.lease_until,
    )
    # In order, so that two that lock several rows never wait for each other.
    .order_by(TASKS.c.task_id)
    .with_for_update()
)
_OF_THEIR_ITEMS = TASKS.c.item_id.in_(select(TASKS.c.item_id).where(TASKS.c.task_id.in_(_IDS)))


class _Questions:
    """What is asked of some tasks: how they stand, what is said of them, what was taken back."""

    def __init__(self, tasks: ColumnElement[bool], ids: Any) -> None:
        self.tasks = _TASK.where(tasks)
        self.said = select(COMPARISONS).where(COMPARISONS.c.task_id.in_(ids))
        self.taken_back = (
            select(WITHDRAWN.c.task_id, WITHDRAWN.c.annotator, func.max(WITHDRAWN.c.revision))
            .where(WITHDRAWN.c.task_id.in_(ids))
            .group_by(WITHDRAWN.c.task_id, WITHDRAWN.c.annotator)
        )


_THESE = _Questions(TASKS.c.task_id.in_(_IDS), _IDS)
_BESIDE = _Questions(_OF_THEIR_ITEMS, select(TASKS.c.task_id).where(_OF_THEIR_ITEMS))
_KNOWN = select(ANNOTATORS.c.name).where(ANNOTATORS.c.name.in_(bindparam("names", expanding=True)))
_SAY = insert(COMPARISONS)
_TAKE_BACK = insert(WITHDRAWN)
_CHANGE = (
    update(TASKS)
    .where(TASKS.c.task_id == bindparam("task"))
    .values(
        answers=bindparam("answers"),
        answered=bindparam("answered"),
        lease_holder=bindparam("holder"),
        lease_until=bindparam("until"),
    )
)
