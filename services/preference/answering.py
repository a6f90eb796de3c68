"""Owns what a page answers, brought to the tasks it is about. Inside a transaction; knows no wire.

An answer names places as the annotator saw them; which candidate stood where is drawn anew from the same hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, NotFound, TrimtabError
from services.common.validation import require
from services.preference.assignment import Kind, is_ranked_count, shown_order
from services.preference.domain import Choice, Comparison, check_comparisons
from services.preference.ranking import Pair, check_ranks, pair_comparisons
from services.preference.recording import Book, Rules
from services.preference.statements import ranking_id_of


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAnswer:
    """One answer to one unit, or (`withdrawn`) the wish to take it back.

    `ranks`: the place, 1 the best, of each answer in the order shown; of a pair (1, 2) is the first, (1, 1) a tie.
    `choice`: SKIP or FLAG instead. `revision`: rises with everything that a page says about the unit. `campaign`: the
    only one that the annotator may answer in; empty: all.
    """

    annotator: str
    unit_id: str
    kind: Kind
    revision: int
    ranks: tuple[int, ...] = ()
    choice: Choice | None = None
    withdrawn: bool = False
    confidence: float | None = None
    comment: str = ""
    seconds: float | None = None
    campaign: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it: `new` comparisons kept or taken back, or why it is refused and need not come again.

    `overtaken`: an answer that is older than the annotator's wish to take it back, so that the task is open still. A
    copy that comes late, or one of another device, whose clock may be behind: only the page knows which.
    """

    new: int = 0
    refused: str = ""
    overtaken: bool = False


def answer_all(session: Session, answers: Sequence[UnitAnswer], rules: Rules) -> list[Outcome]:
    """Each in turn; one that is refused changes nothing and stops no other."""
    # No id has a NUL, and PostgreSQL would refuse the whole question for one.
    units = (answer.unit_id for answer in answers if "\0" not in answer.unit_id)
    ranked = any(answer.kind == "ranking" for answer in answers)
    book = Book.open(session, units, rules, beside=ranked)
    pairs = {name: task.pair for name, task in book.tasks.items()}
    outcomes = []
    for answer in answers:
        try:
            outcomes.append(_note(book, _unit_of(pairs, answer), answer))
        except TrimtabError as error:
            outcomes.append(Outcome(refused=str(error)))
    book.write(session)
    return outcomes


def _unit_of(pairs: Mapping[str, Pair], answer: UnitAnswer) -> list[Pair]:
    """The pairs that an answer is about. NotFound where there are none that the annotator may answer."""
    named = pairs.get(answer.unit_id)
    if named is not None and answer.campaign not in ("", named.campaign):
        raise NotFound(f"task {answer.unit_id} is not known")
    if named is not None and answer.kind == "pair":
        return [named]
    of_item = sorted(
        (pair for pair in pairs.values() if named is not None and pair.item_id == named.item_id),
        key=lambda pair: pair.task_id,
    )
    if not of_item or of_item[0] is not named or not is_ranked_count(len(_candidates(of_item))):
        raise NotFound(f"task {answer.unit_id} is not known")
    return of_item


def _note(book: Book, pairs: Sequence[Pair], answer: UnitAnswer) -> Outcome:
    tasks = [pair.task_id for pair in pairs]
    if answer.withdrawn:
        return Outcome(book.withdraw(answer.annotator, tasks, answer.revision))
    comparisons = comparisons_of(pairs, answer)
    check_comparisons(comparisons)
    new = book.answer(comparisons)
    return Outcome(new, overtaken=book.overtaken(answer.annotator, tasks, answer.revision))


def _candidates(pairs: Sequence[Pair]) -> set[str]:
    return {candidate for pair in pairs for candidate in (pair.first_candidate_id, pair.second_candidate_id)}


def comparisons_of(pairs: Sequence[Pair], answer: UnitAnswer) -> list[Comparison]:
    """What an answer says about each pair, sides as shown. InvalidInput where it fits the unit not."""
    require(answer.revision > 0, "revision", "expected a positive number")
    shown = shown_order(pairs[0].item_id, sorted(_candidates(pairs)), answer.annotator)
    ranks: dict[str, int] | Choice
    if answer.choice is not None:
        if answer.choice not in (Choice.SKIP, Choice.FLAG):
            raise InvalidInput("choice: expected skip or flag, or ranks instead")
        ranks = answer.choice
    else:
        check_ranks(answer.ranks, len(shown))
        ranks = dict(zip(shown, answer.ranks, strict=True))
    template = Comparison(
        task_id="",
        annotator=answer.annotator,
        first_candidate_id="",
        second_candidate_id="",
        choice=Choice.SKIP,
        confidence=answer.confidence,
        comment=answer.comment,
        ranking_id=ranking_id_of([answer.unit_id], answer.annotator) if answer.kind == "ranking" else "",
        seconds=answer.seconds,
        revision=answer.revision,
    )
    return pair_comparisons(pairs, ranks, template, shown)
