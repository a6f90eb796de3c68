"""Owns what annotators ask for: the page, tasks, answers, leaving. Knows no table."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from services.common.http_guard import BodyReader
from services.preference import overview
from services.preference.accounts import Person
from services.preference.config import WebSpec
from services.preference.preferences import Preferences
from services.preference.web import wire
from services.preference.web.markdown import to_html
from services.preference.web.rendering import Renderer
from services.preference.web.security import csrf_token
from services.preference.web.sessions import Sessions

_PROGRESS_SECONDS = 3.0


class AnnotatorRoutes:
    """Each method answers one route; see app.py."""

    def __init__(
        self,
        preferences: Preferences,
        sessions: Sessions,
        renderer: Renderer,
        bodies: BodyReader,
        web: WebSpec,
    ) -> None:
        self._preferences = preferences
        self._sessions = sessions
        self._renderer = renderer
        self._bodies = bodies
        self._web = web
        self._counts: dict[str, tuple[float, tuple[int, int]]] = {}

    async def home(self, request: Request) -> Response:
        """To the page that one's role is for."""
        person = await self._sessions.person(request)
        return RedirectResponse("/overview" if person.role == "owner" else "/label", 303)

    async def join(self, _: Request) -> Response:
        """The door. A link's token stands behind the #, so that it never travels in an address."""
        return self._renderer.page("join.html")

    async def sign_in(self, request: Request) -> Response:
        """From a link's token to a session's cookie."""
        async with self._bodies.body(request.scope, request.receive) as body:
            sent = wire.parse(wire.SignIn, body)
        person, secret = await self._sessions.sign_in(request, sent.token)
        response = JSONResponse({"name": person.name, "role": person.role})
        self._sessions.cookies.write(response, secret)
        return response

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        await self._sessions.sign_out(request)
        response = Response(status_code=204)
        self._sessions.cookies.clear(response)
        return response

    async def page(self, request: Request) -> Response:
        """The page; its script asks for tasks."""
        person = await self._sessions.person(request)
        return self._renderer.page(
            "label.html",
            person=person,
            csrf=csrf_token(self._sessions.cookies.read(request)),
            ahead=self._web.tasks_ahead,
            undo_seconds=self._web.undo_seconds,
            instructions=to_html(self._web.instructions),
        )

    async def tasks(self, request: Request) -> Response:
        """Tasks to hold, and how far one has come. Asking again renews the leases of what is held."""
        person = await self._sessions.caller(request)
        async with self._bodies.body(request.scope, request.receive) as body:
            sent = wire.parse(wire.Wanted, body)
        units = await self._preferences.next_units(
            person.name, campaign=person.campaign, limit=sent.limit, rankings=self._web.rankings
        )
        shown = [wire.unit_json(unit, person.name, markdown=self._web.markdown) for unit in units]
        return JSONResponse({"units": shown, "now": time.time(), "progress": await self._progress(person)})

    async def answers(self, request: Request) -> Response:
        """Answers; on disk when this answers. Each may come again."""
        person = await self._sessions.caller(request)
        async with self._bodies.body(request.scope, request.receive) as body:
            sent = wire.parse(wire.SentAnswers, body).answers
        outcomes = await self._preferences.answer(
            [answer.of(person.name, person.campaign) for answer in sent]
        )
        return JSONResponse({"outcomes": wire.outcomes_json(sent, outcomes)})

    async def release(self, request: Request) -> Response:
        """A page goes: what it held is free at once."""
        person = await self._sessions.caller(request)
        async with self._bodies.body(request.scope, request.receive) as body:
            sent = wire.parse(wire.Released, body)
        await self._preferences.release(person.name, until=sent.until)
        return Response(status_code=204)

    async def _progress(self, person: Person) -> dict[str, Any]:
        done = await self._preferences.query(
            lambda session: overview.answered_by(session, person.name, person.campaign)
        )
        waiting, total = await self._task_counts(person.campaign)
        return {"done": done, "open": waiting, "total": total}

    async def _task_counts(self, campaign: str) -> tuple[int, int]:
        """Tasks of a campaign, counted anew only every few seconds: counting takes longer than answering."""
        counted, numbers = self._counts.get(campaign, (0.0, (0, 0)))
        if time.monotonic() - counted > _PROGRESS_SECONDS or not counted:
            self._counts[campaign] = (time.monotonic(), numbers)  # those who come meanwhile see the last ones
            numbers = await self._preferences.query(lambda session: overview.task_counts(session, campaign))
            self._counts[campaign] = (time.monotonic(), numbers)
        return numbers
