"""Owns which format a row has, and what it says. Knows no file.

    pairs          {"chosen", "rejected"}, with or without "prompt", optional "margin": pairs.py
    summaries      {"info": {"post" or "article", …}, "summaries": [{"text", "policy"}, …], "choice", "worker",
                   "extra": {"confidence": 1 to 9}}: OpenAI's summary comparisons (arXiv 2009.01325)
    best of N      {"query", "sample0", "sample1", …, "best"}: OpenAI's preferences (arXiv 1909.08593), as text
    ranked list    {"prompt", "ranked": [best, …, worst]}, a list within the list being a tie, or
                   {"prompt", "answers": ["…", …], "ranks": [1, 2, 2, …]} with 1 the best, or
                   {"prompt", "answers": [{"answer", "model", "rank"}, …]}: Nectar

Optional columns of all: prompt_id, item_id, campaign, annotator, confidence (0 to 1), tree; of pairs also
chosen_source and rejected_source. Ids may be numbers. A column that is null is one that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from services.common.comparisons.fields import (
    Fault,
    Malformed,
    column,
    field_names,
    index,
    kind,
    many,
    number,
    text,
    whole,
)
from services.common.comparisons.pairs import Messages, parse_pair, parse_prompt
from services.common.comparisons.records import (
    BestOf,
    Comparison,
    Message,
    Origin,
    Ranking,
    Record,
    fingerprint,
)

Row = Mapping[str, Any]

_SAMPLE = re.compile(r"sample(0|[1-9][0-9]{0,3})")
_KNOWN = "chosen and rejected; summaries and choice; query, sample0, … and best; ranked; answers and ranks"


def parse_row(row: Row, place: str) -> Record:
    """What a row says. Raises Malformed."""
    # Where formats share a table each row has the others' columns, too, with nothing in them.
    there = {name: value for name, value in row.items() if value is not None}
    for schema, fields in _SCHEMAS:
        if any(field in there for field in fields):
            return schema(there, place)
    got = field_names(there) or "no field"
    if nothing := field_names({name: value for name, value in row.items() if value is None}):
        got += f", and nothing in {nothing}"
    raise Malformed("row", f"expected the fields of a known format ({_KNOWN}), got {got}")


def _origin(row: Row, place: str, prompt: Messages, *, annotator: str = "", prompt_id: str = "") -> Origin:
    named, tree = column(row, "prompt_id") or prompt_id, column(row, "tree")
    return Origin(
        place=place,
        group=named or tree or fingerprint(prompt),
        prompt_id=named,
        tree=tree,
        item_id=column(row, "item_id"),
        campaign=column(row, "campaign"),
        annotator=column(row, "annotator") or annotator,
        confidence=number(row.get("confidence"), "confidence", low=0, high=1),
    )


def _pair(row: Row, place: str) -> Record:
    prompt, chosen, rejected = parse_pair(row)
    if chosen == rejected:
        raise Malformed("rejected", "expected another text than chosen", Fault.IDENTICAL)
    return Comparison(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        origin=_origin(row, place, prompt),
        margin=number(row.get("margin"), "margin"),
        chosen_source=column(row, "chosen_source"),
        rejected_source=column(row, "rejected_source"),
    )


def _summaries(row: Row, place: str) -> Record:
    info = _object(row.get("info"), "info")
    prompt = (Message("user", _asked(info)),)
    offered = many(row["summaries"], "summaries")
    if len(offered) != 2:
        raise Malformed("summaries", f"expected 2, got {len(offered)}")
    sides = [_object(one, f"summaries[{n}]") for n, one in enumerate(offered)]
    texts = [text(one.get("text"), f"summaries[{n}].text") for n, one in enumerate(sides)]
    better = index(row.get("choice"), "choice", 2)
    if texts[0] == texts[1]:
        raise Malformed("summaries", "expected two texts that differ", Fault.IDENTICAL)
    extra = _object(row.get("extra") or {}, "extra")
    sure = number(extra.get("confidence"), "extra.confidence", low=1, high=9)
    origin = _origin(
        dict(row) | {"confidence": None if sure is None else (sure - 1) / 8},
        place,
        prompt,
        annotator=column(row, "worker"),
        prompt_id=column(info, "id"),
    )
    return Comparison(
        prompt=prompt,
        chosen=texts[better],
        rejected=texts[1 - better],
        origin=origin,
        chosen_source=column(sides[better], "policy"),
        rejected_source=column(sides[1 - better], "policy"),
    )


def _asked(info: Row) -> str:
    """The post or article; its title and forum before it, as far as it has them."""
    name = "post" if info.get("post") else "article"
    body = text(info.get(name), f"info.{name}")
    lines = [
        f"{label}: {text(info[field], f'info.{field}')}"
        for field, label in (("subreddit", "SUBREDDIT"), ("title", "TITLE"))
        if info.get(field)
    ]
    return "\n".join([*lines, f"{name.upper()}: {body}", "", "TL;DR:"])


def _best_of(row: Row, place: str) -> Record:
    prompt = parse_prompt(row.get("query"), "query")
    numbers = sorted(int(found[1]) for name in row if (found := _SAMPLE.fullmatch(name)))
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise Malformed("sample0", f"expected sample0, sample1, … without a gap, got {len(numbers)} samples")
    answers = tuple(text(row[f"sample{n}"], f"sample{n}") for n in numbers)
    best = index(row.get("best"), "best", len(answers))
    if len(set(answers)) == 1:
        raise Malformed("sample1", "expected samples that differ", Fault.IDENTICAL)
    return BestOf(
        prompt=prompt,
        answers=answers,
        best=best,
        origin=_origin(row, place, prompt),
        sources=("",) * len(answers),
    )


def _ranked(row: Row, place: str) -> Record:
    """A list from best to worst; those of an inner list are equally good."""
    answers: list[str] = []
    ranks: list[int] = []
    for number_, one in enumerate(many(row["ranked"], "ranked")):
        where = f"ranked[{number_}]"
        equals = many(one, where, 1) if isinstance(one, list) else [one]
        rank = len(answers) + 1
        for said in equals:
            answers.append(text(said, where))
            ranks.append(rank)
    return _ranking(row, place, answers, ranks, [""] * len(answers), "ranked")


def _answers(row: Row, place: str) -> Record:
    """Answers in any order, with a rank each."""
    offered = many(row.get("answers"), "answers")
    if all(isinstance(one, dict) for one in offered):
        sources = [column(one, "model", "source") for one in offered]
        named = "answer" if "answer" in offered[0] else "text"
        texts = [text(one.get(named), f"answers[{n}].{named}") for n, one in enumerate(offered)]
        ranks = [_rank(one.get("rank"), f"answers[{n}].rank") for n, one in enumerate(offered)]
    else:
        sources = [""] * len(offered)
        texts = [text(one, f"answers[{n}]") for n, one in enumerate(offered)]
        given = many(row.get("ranks"), "ranks", 0)
        if len(given) != len(offered):
            raise Malformed("ranks", f"expected one for each of {len(offered)} answers, got {len(given)}")
        ranks = [_rank(one, f"ranks[{n}]") for n, one in enumerate(given)]
    order = sorted(range(len(texts)), key=lambda n: ranks[n])
    return _ranking(
        row,
        place,
        [texts[n] for n in order],
        [ranks[n] for n in order],
        [sources[n] for n in order],
        "answers",
    )


def _rank(value: object, field: str) -> int:
    """A rank, 1 the best."""
    rank = whole(value)
    if rank is None or not 1 <= rank <= 10_000:
        got = str(value)[:20] if kind(value) == "a number" else kind(value)
        raise Malformed(field, f"expected a whole number from 1 (the best), got {got}")
    return rank


def _ranking(
    row: Row, place: str, answers: list[str], ranks: list[int], sources: list[str], field: str
) -> Record:
    if len(set(answers)) != len(answers):
        raise Malformed(field, "expected answers that differ", Fault.IDENTICAL)
    prompt = parse_prompt(row.get("prompt"))
    margin = number(row.get("margin"), "margin")
    if margin is not None:
        if len(answers) != 2 or ranks[0] == ranks[1]:
            raise Malformed("margin", "expected one for two answers of different ranks alone")
        return Comparison(
            prompt=prompt,
            chosen=answers[0],
            rejected=answers[1],
            origin=_origin(row, place, prompt),
            margin=margin,
            chosen_source=sources[0],
            rejected_source=sources[1],
        )
    return Ranking(
        prompt=prompt,
        answers=tuple(answers),
        ranks=tuple(ranks),
        origin=_origin(row, place, prompt),
        sources=tuple(sources),
    )


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(field, f"expected an object, got {kind(value)}")
    return value


# The first whose fields a row has; the fields are those that no other format has.
_SCHEMAS: tuple[tuple[Callable[[Row, str], Record], tuple[str, ...]], ...] = (
    (_pair, ("chosen", "rejected")),
    (_summaries, ("summaries",)),
    (_best_of, ("sample0", "sample1", "best")),
    (_ranked, ("ranked",)),
    (_answers, ("answers", "ranks")),
)
