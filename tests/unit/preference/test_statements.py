"""Comparisons put together again to what was said at once."""

from __future__ import annotations

from services.preference.domain import Choice, Comparison, Item
from services.preference.statements import ranks_of, statement_row, statements
from tests.unit.preference.builders import item

LEFT, TIE, RIGHT = Choice.FIRST, Choice.TIE, Choice.SECOND
FOUR = item(1, "w", "x", "y", "z", sources=("s0", "s1", "s2", "s3"))


def said(pair: str, choice: Choice, ranking: str = "r", annotator: str = "ann") -> Comparison:
    """What was said of the candidates c<one> and c<other>."""
    return Comparison(
        task_id=pair,
        annotator=annotator,
        first_candidate_id=f"c{pair[0]}",
        second_candidate_id=f"c{pair[1]}",
        choice=choice,
        ranking_id=ranking,
    )


# c2 is best, c0 and c3 share the second place, c1 is last.
WHOLE = [
    said("01", LEFT),
    said("20", LEFT),
    said("03", TIE),
    said("12", RIGHT),
    said("31", LEFT),
    said("23", LEFT),
]


def together(rows: list[Comparison], of: Item = FOUR) -> list[list[str]]:
    """The pairs of each statement."""
    return [[one.task_id for one in part] for part, _ in statements((row, of) for row in rows)]


def test_a_whole_ranking_is_one_statement_with_its_places() -> None:
    """Whichever side each pair was shown on, and whatever comes in between."""
    other = [said(one.task_id, one.choice, annotator="bob") for one in WHOLE]
    mixed = [one for pair in zip(WHOLE, other, strict=True) for one in pair]
    assert together([mixed[0], said("01", LEFT, ranking=""), *mixed[1:]]) == [
        ["01"],
        ["01", "20", "03", "12", "31", "23"],
        ["01", "20", "03", "12", "31", "23"],
    ]
    assert ranks_of(WHOLE) == {"c2": 1, "c0": 2, "c3": 2, "c1": 4}
    row = statement_row(WHOLE, FOUR)
    assert [(one["answer"], one["source"], one["rank"]) for one in row["answers"]] == [
        ("y", "s2", 1),
        ("w", "s0", 2),
        ("z", "s3", 2),
        ("x", "s1", 4),
    ]
    assert (row["item_id"], row["margin"]) == (FOUR.item_id, None)


def test_what_is_no_ranking_comes_pair_by_pair() -> None:
    """A pair was taken back; or the pairs go round in a circle; skipped ones say nothing."""
    assert together(WHOLE[1:]) == [[one.task_id] for one in WHOLE[1:]]
    circle = [said("01", LEFT), said("12", LEFT), said("20", LEFT)]
    assert together(circle, item(2, "x", "y", "z")) == [["01"], ["12"], ["20"]]
    assert together([said("01", Choice.SKIP), said("02", Choice.FLAG, ranking="")]) == []


def test_a_pair_of_a_larger_item_has_a_name_of_its_own() -> None:
    """Read back it is an item of two answers: no other pair's, and always the same."""
    names = {
        str(statement_row([said(pair, choice, ranking="")], FOUR)["item_id"])
        for pair, choice in (("01", LEFT), ("10", LEFT), ("02", LEFT))
    }
    assert len(names) == 2
    assert FOUR.item_id not in names
