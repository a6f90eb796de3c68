"""Owns who asks: from cookie to person, with a short memory. Knows no page."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.requests import Request

from services.common.errors import Forbidden, Unauthenticated
from services.preference import accounts
from services.preference.accounts import Person
from services.preference.preferences import Preferences
from services.preference.web.limits import RateLimit
from services.preference.web.security import Cookies, check_csrf, check_own

_REMEMBERED_SECONDS = 5.0
_MOST = 4096


class Sessions:
    """Signing in and knowing again. A revoked link's sessions end within five seconds."""

    def __init__(
        self,
        preferences: Preferences,
        cookies: Cookies,
        *,
        host: str,
        session_seconds: float,
        requests_per_minute: int,
        sign_ins_per_minute: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._preferences = preferences
        self.cookies = cookies
        self._host = host
        self._session_seconds = session_seconds
        self._requests = RateLimit(requests_per_minute)
        self._sign_ins = RateLimit(sign_ins_per_minute)
        self._clock = clock
        self._known: dict[str, tuple[Person, float]] = {}

    async def sign_in(self, request: Request, token: str) -> tuple[Person, str]:
        """Whose link it is, and the secret for the cookie. Unauthenticated, Forbidden, Overloaded."""
        check_own(request, self._host)
        now = self._clock()
        try:
            await self._preferences.query(lambda session: accounts.invited(session, token, now=now))
        except Unauthenticated:
            # Failures alone: a whole team may sign in from one address, and a stranger's junk must not lock it out.
            self._sign_ins.take(request.client.host if request.client else "")
            raise
        return await self._preferences.change(
            lambda session: accounts.sign_in(session, token, now=now, session_seconds=self._session_seconds)
        )

    async def sign_out(self, request: Request) -> None:
        """End the session of this request."""
        secret = self.cookies.read(request)
        check_own(request, self._host)
        check_csrf(request, secret)
        self._known.pop(secret, None)
        await self._preferences.change(lambda session: accounts.sign_out(session, secret))

    async def person(self, request: Request, *, owner: bool = False) -> Person:
        """Who asks for a page. Unauthenticated, Forbidden for what only owners see, Overloaded."""
        secret = self.cookies.read(request)
        person = await self._person(secret) if secret else None
        if person is None:
            raise Unauthenticated("open your personal link to sign in")
        self._requests.take(person.name)
        if owner and person.role != "owner":
            raise Forbidden("this page is for owners")
        return person

    async def caller(self, request: Request) -> Person:
        """Who changes something: person(), from a page of our own."""
        person = await self.person(request)
        check_own(request, self._host)
        check_csrf(request, self.cookies.read(request))
        return person

    async def _person(self, secret: str) -> Person | None:
        now = self._clock()
        known = self._known.get(secret)
        if known is not None and now < known[1]:
            return known[0]
        person = await self._preferences.query(lambda session: accounts.who(session, secret, now=now))
        self._known.pop(secret, None)
        if person is not None:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[secret] = (person, now + _REMEMBERED_SECONDS)
        return person
