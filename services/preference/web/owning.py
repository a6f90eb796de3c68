"""Owns what owners ask for: overview, browser, export. Knows no table."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.common.errors import InvalidInput
from services.common.validation import require
from services.preference import overview
from services.preference.crowd import Reliability
from services.preference.domain import Choice, Comparison, Item, Statistics, Subject
from services.preference.insight import Insight
from services.preference.overview import Filter
from services.preference.preferences import Preferences
from services.preference.ratings import Rating
from services.preference.records import format_record, has_winner
from services.preference.web import plots
from services.preference.web.markdown import as_text, to_html
from services.preference.web.rendering import Renderer
from services.preference.web.security import csrf_token
from services.preference.web.sessions import Sessions

_FRESH_SECONDS = 2.0
_SLOW_FACTOR = 10.0
_MOST_FIELD = 200
_FORMS = ("preferences", "all")


@dataclass(frozen=True, slots=True)
class _Looked:
    """What the overview shows, and until when it is shown again without looking."""

    counts: Statistics
    insight: Insight
    ratings: list[Rating]
    unrated: str
    """Why there are no ratings, where they cannot be computed yet."""
    reliable: dict[str, Reliability]
    at: float
    until: float


class OwnerRoutes:
    """Each method answers one route; see app.py."""

    def __init__(
        self, preferences: Preferences, sessions: Sessions, renderer: Renderer, *, markdown: bool
    ) -> None:
        self._preferences = preferences
        self._sessions = sessions
        self._renderer = renderer
        self._render = to_html if markdown else as_text
        self._looked: dict[str, _Looked] = {}
        self._looking = asyncio.Lock()

    async def overview(self, request: Request) -> Response:
        """Rates, agreement, annotators, ratings."""
        values = await self._page_values(request)
        looked = await self._look(values["campaign"])
        now = time.time()
        last_hour = await self._preferences.query(
            lambda session: overview.labels_since(session, values["campaign"], now - 3600)
        )
        ratings = plots.by_version(looked.ratings)
        return self._renderer.page(
            "overview.html",
            **values,
            counts=looked.counts,
            insight=looked.insight,
            last_hour=last_hour,
            ratings=looked.ratings,
            unrated=looked.unrated,
            reliable=looked.reliable,
            rating_plot=plots.rating_plot(ratings),
            hour_plot=plots.hour_plot(looked.insight.by_hour, now),
            looked_at=looked.at,
        )

    async def browse(self, request: Request) -> Response:
        """Comparisons, by filters."""
        values = await self._page_values(request)
        wanted = _filter(request)
        found = await self._preferences.query(lambda session: overview.browse(session, wanted))
        names = await self._preferences.query(lambda session: overview.annotators(session, wanted.campaign))
        return self._renderer.page(
            "browse.html",
            **values,
            wanted=wanted,
            found=found,
            rows=[self._row(comparison, item) for comparison, item in found.rows],
            annotators=names,
            choices=[choice.value for choice in Choice],
            link=lambda page: "/browse?" + urlencode(_query(replace(wanted, page=page))),
        )

    async def export(self, request: Request) -> Response:
        """All comparisons as JSON lines: `preferences` in TRL's schema, those with a winner; `all` as they are.

        A column `margin` is in all rows of TRL's schema, 0 where nobody gave one, or in none: no reader takes both.
        """
        await self._sessions.person(request, owner=True)
        campaign, form = _field(request, "campaign"), _field(request, "form") or "preferences"
        require(form in _FORMS, "form", f"expected {' or '.join(_FORMS)}")
        margins = form == "preferences" and await self._preferences.query(
            lambda session: overview.has_margins(session, campaign)
        )
        rows = self._preferences.comparisons(campaign=campaign, items=True, gold=form == "all")
        name = f"{form}-{campaign}" if campaign else form
        safe = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
        return StreamingResponse(
            _lines(rows, partial(_preference, margins=margins) if form == "preferences" else _plain),
            media_type="application/x-ndjson",
            headers={"content-disposition": f'attachment; filename="{safe}.jsonl"'},
        )

    async def _page_values(self, request: Request) -> dict[str, Any]:
        person = await self._sessions.person(request, owner=True)
        return {
            "person": person,
            "csrf": csrf_token(self._sessions.cookies.read(request)),
            "campaign": _field(request, "campaign"),
            "campaigns": await self._preferences.query(overview.campaigns),
        }

    async def _look(self, campaign: str) -> _Looked:
        """Counts and ratings; what took long to compute is shown for ten times as long."""
        async with self._looking:
            looked = self._looked.get(campaign)
            if looked is None or time.time() > looked.until:
                began = time.time()
                counts = await self._preferences.statistics(campaign=campaign)
                insight = await self._preferences.insight(campaign=campaign)
                ratings, unrated = await self._rated(campaign)
                found = await self._preferences.reliability(campaign=campaign)
                reliable = {one.annotator: one for one in found}
                now = time.time()
                until = now + max(_FRESH_SECONDS, _SLOW_FACTOR * (now - began))
                looked = self._looked[campaign] = _Looked(
                    counts, insight, ratings, unrated, reliable, now, until
                )
            return looked

    async def _rated(self, campaign: str) -> tuple[list[Rating], str]:
        """Ratings of sources, or why there are none: the rest of the page does not depend on them."""
        try:
            return await self._preferences.ratings(Subject.SOURCE, campaign=campaign), ""
        except InvalidInput as error:
            return [], str(error)

    def _row(self, comparison: Comparison, item: Item) -> dict[str, Any]:
        """A comparison as the browser shows it."""
        sides = [
            (choice, item.candidate(candidate))
            for choice, candidate in (
                (Choice.FIRST, comparison.first_candidate_id),
                (Choice.SECOND, comparison.second_candidate_id),
            )
        ]
        return {
            "said": comparison,
            "item": item,
            "prompt": [(turn.role, self._render(turn.content)) for turn in item.prompt],
            "head": " ".join(item.prompt[-1].content.split())[:160],
            "sides": [
                {
                    "html": self._render(candidate.text),
                    "source": candidate.source or candidate.candidate_id,
                    "won": comparison.choice is choice,
                }
                for choice, candidate in sides
            ],
        }


def _filter(request: Request) -> Filter:
    choice, kind = _field(request, "choice"), _field(request, "kind")
    require(choice in ("", *(one.value for one in Choice)), "choice", "expected a choice")
    require(kind in ("", "gold", "plain"), "kind", "expected gold or plain")
    page = _field(request, "page") or "1"
    require(
        page.isascii() and page.isdecimal() and 1 <= int(page) <= 10**6, "page", "expected a page's number"
    )
    return Filter(
        campaign=_field(request, "campaign"),
        annotator=_field(request, "annotator"),
        choice=choice,
        text=_field(request, "text"),
        kind=kind,
        disputed=_field(request, "disputed") == "1",
        page=int(page),
    )


def _query(wanted: Filter) -> dict[str, str]:
    fields = {
        "campaign": wanted.campaign,
        "annotator": wanted.annotator,
        "choice": wanted.choice,
        "text": wanted.text,
        "kind": wanted.kind,
        "disputed": "1" if wanted.disputed else "",
        "page": str(wanted.page),
    }
    return {name: value for name, value in fields.items() if value}


def _field(request: Request, name: str) -> str:
    value = request.query_params.get(name, "")
    if len(value) > _MOST_FIELD or "\0" in value:
        raise InvalidInput(f"{name}: expected at most {_MOST_FIELD} characters", {name: "shorter text"})
    return value


async def _lines(
    rows: AsyncIterator[tuple[Comparison, Item | None]],
    write: Callable[[Comparison, Item], dict[str, Any] | None],
) -> AsyncIterator[bytes]:
    """One JSON object a line; those that a form has no row for are left out."""
    async for comparison, item in rows:
        if item is not None and (row := write(comparison, item)) is not None:
            yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _preference(comparison: Comparison, item: Item, *, margins: bool) -> dict[str, Any] | None:
    if not has_winner(comparison, item):
        return None
    return format_record(comparison, item, margin=(comparison.margin or 0.0) if margins else None)


def _plain(comparison: Comparison, item: Item) -> dict[str, Any]:
    first, second = (
        item.candidate(candidate)
        for candidate in (comparison.first_candidate_id, comparison.second_candidate_id)
    )
    return {
        "task_id": comparison.task_id,
        "item_id": item.item_id,
        "prompt_id": item.prompt_id,
        "campaign": item.campaign,
        "annotator": comparison.annotator,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in item.prompt],
        "first": {"candidate_id": first.candidate_id, "text": first.text, "source": first.source},
        "second": {"candidate_id": second.candidate_id, "text": second.text, "source": second.source},
        "choice": comparison.choice.value,
        "confidence": comparison.confidence,
        "comment": comparison.comment,
        "ranking_id": comparison.ranking_id,
        "seconds": comparison.seconds,
        "margin": comparison.margin,
        "recorded_at": comparison.recorded_at,
        "gold": comparison.gold,
    }
