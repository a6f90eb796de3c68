"""Owns the queries for tasks to lease: built once, since building one anew takes longer than its answer.

Their parameters: `annotator`, `campaign`, `now` of whoever asks (see leasing.Asking), `most` rows; ids of tasks and
items as each says. PostgreSQL locks what is found, passing over what others are taking; SQLite has one writer anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Integer, Select, bindparam, exists, func, or_, select

from services.preference.tables import CANDIDATES, COMPARISONS, ITEMS, TASKS

Query = Select[*tuple[Any, ...]]

_CANDIDATES_OF_ITEM = (
    select(func.count())
    .select_from(CANDIDATES)
    .where(CANDIDATES.c.item_id == TASKS.c.item_id)
    .correlate(TASKS)
    .scalar_subquery()
)
COLUMNS = (
    TASKS.c.task_id,
    TASKS.c.item_id,
    TASKS.c.first_candidate_id,
    TASKS.c.second_candidate_id,
    TASKS.c.priority,
    TASKS.c.order_key,
    TASKS.c.gold,
    _CANDIDATES_OF_ITEM,
)
_MOST = bindparam("most", type_=Integer)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseQueries:
    """In the order of presentation, unless named otherwise; none that the annotator answered.

    held            by the annotator; held_by_item: in the order of items
    gold            not locked, nor ever leased
    free            but the tasks `seen` and those of the items `settled`; free_by_item: their items are locked instead
    free_of_items   of `items`; free_among: of the tasks `ids`; free_of_items_or_among: of either
    """

    held: Query
    held_by_item: Query
    gold: Query
    free: Query
    free_by_item: Query
    free_of_items: Query
    free_among: Query
    free_of_items_or_among: Query


def _queries(*, of_campaign: bool) -> LeaseQueries:
    mine = exists().where(
        COMPARISONS.c.task_id == TASKS.c.task_id, COMPARISONS.c.annotator == bindparam("annotator")
    )
    unanswered: Query = select(*COLUMNS).where(~mine)
    if of_campaign:
        unanswered = unanswered.where(TASKS.c.campaign == bindparam("campaign"))
    waiting = unanswered.where(TASKS.c.answered.is_(False), TASKS.c.gold.is_(False))
    held = waiting.where(
        TASKS.c.lease_holder == bindparam("annotator"), TASKS.c.lease_until > bindparam("now")
    )
    order = (TASKS.c.priority, TASKS.c.order_key, TASKS.c.task_id)
    free = waiting.where(TASKS.c.lease_until <= bindparam("now")).order_by(*order)
    others = free.where(TASKS.c.task_id.not_in(_ids("seen")), TASKS.c.item_id.not_in(_ids("settled"))).limit(
        _MOST
    )
    by_item = others.join(ITEMS, ITEMS.c.item_id == TASKS.c.item_id)
    of_items, among = TASKS.c.item_id.in_(_ids("items")), TASKS.c.task_id.in_(_ids("ids"))
    return LeaseQueries(
        held=_locked(held.order_by(*order).limit(_MOST)),
        held_by_item=_locked(held.order_by(TASKS.c.item_id).limit(_MOST)),
        gold=unanswered.where(TASKS.c.gold.is_(True)).order_by(*order).limit(_MOST),
        free=_locked(others),
        free_by_item=by_item.with_for_update(skip_locked=True, key_share=True, of=ITEMS),
        free_of_items=free.where(of_items),
        free_among=_locked(free.where(among)),
        free_of_items_or_among=_locked(free.where(or_(of_items, among))),
    )


def _ids(name: str) -> BindParameter[Any]:
    return bindparam(name, expanding=True)


def _locked(query: Query) -> Query:
    return query.with_for_update(skip_locked=True, of=TASKS)


QUERIES = {of_campaign: _queries(of_campaign=of_campaign) for of_campaign in (False, True)}
