"""Owns what one annotator said of an item at once, put together again from comparisons: a ranking, or one pair. Pure.

The rows lose neither ties nor rankings, which TRL's schemas do; services/common/comparisons reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from services.preference.domain import Choice, Comparison, Item, content_id

Rows = Iterable[tuple[Comparison, Item]]
_SIGNS = {Choice.FIRST: -1, Choice.TIE: 0, Choice.SECOND: 1}


def ranking_id_of(task_ids: Iterable[str], annotator: str) -> str:
    """What the pairs of a whole ranking share: the same for a page's and for an imported one."""
    return content_id(min(task_ids), annotator)


def statements(rows: Rows) -> Iterator[tuple[tuple[Comparison, ...], Item]]:
    """Comparisons that belong together; skipped and flagged ones say nothing.

    A ranking comes when its last pair has come; one of which pairs are missing or contradict each other, at the end,
    pair by pair.
    """
    waiting: dict[tuple[str, str], tuple[list[Comparison], Item]] = {}
    for said, item in rows:
        if said.choice not in _SIGNS:
            continue
        if not said.ranking_id:
            yield (said,), item
            continue
        key = (said.ranking_id, said.annotator)
        together, _ = waiting.setdefault(key, ([], item))
        together.append(said)
        if len(together) == math.comb(len(item.candidates), 2) and _is_order(together):
            del waiting[key]
            yield tuple(together), item
    for together, item in waiting.values():
        for said in together:
            yield (said,), item


def ranks_of(together: Sequence[Comparison]) -> dict[str, int]:
    """Each candidate's place, 1 the best: one more than those that are better. The best come first."""
    better: dict[str, int] = {}
    for said in together:
        sign = _SIGNS[said.choice]
        for candidate, worse in (
            (said.first_candidate_id, sign > 0),
            (said.second_candidate_id, sign < 0),
        ):
            better[candidate] = better.get(candidate, 0) + worse
    return {
        candidate: count + 1 for candidate, count in sorted(better.items(), key=lambda one: (one[1], one[0]))
    }


def row_item_id(item: Item, candidate_ids: Iterable[str]) -> str:
    """The id of the item that a row of these candidates is read back as.

    Some of a larger item need a name of their own, by id: two of its texts may be the same, compared with a third.
    """
    some = sorted(candidate_ids)
    return item.item_id if len(some) == len(item.candidates) else content_id(item.item_id, *some)


def _is_order(together: Sequence[Comparison]) -> bool:
    """Whether the places say what the pairs say: there is no circle in them."""
    ranks = ranks_of(together)
    leads = (ranks[said.first_candidate_id] - ranks[said.second_candidate_id] for said in together)
    return all(
        (lead > 0) - (lead < 0) == _SIGNS[said.choice] for lead, said in zip(leads, together, strict=True)
    )


def statement_row(together: Sequence[Comparison], item: Item) -> dict[str, Any]:
    """One row: the prompt, the answers with their places, who said it; `margin` of a pair alone."""
    ranks, said = ranks_of(together), together[0]
    answers = [(item.candidate(candidate), rank) for candidate, rank in ranks.items()]
    return {
        "prompt": [{"role": message.role, "content": message.content} for message in item.prompt],
        "answers": [{"answer": one.text, "source": one.source, "rank": rank} for one, rank in answers],
        "item_id": row_item_id(item, ranks),
        "prompt_id": item.prompt_id,
        "campaign": item.campaign,
        "annotator": said.annotator,
        "confidence": said.confidence,
        "margin": said.margin if len(together) == 1 and said.choice is not Choice.TIE else None,
    }
