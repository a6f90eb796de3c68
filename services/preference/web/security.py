"""Owns the headers of every page and the marks of a request of our own: CSP, cookies, CSRF. Knows no route."""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import Forbidden
from services.common.http_guard import AsgiApp, Message, Receive, Scope, Send

# No inline script or style, nothing from elsewhere, no frame, no form to elsewhere; HTML strings become nodes in one
# place of label.js alone (trusted types).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types trimtab"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
CSRF_HEADER = "x-csrf-token"


class SecureHeaders:
    """Adds the headers to every answer; nothing is kept by caches unless its route says so."""

    def __init__(self, app: AsgiApp, *, https: bool) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
        if https:
            self._headers.append((b"strict-transport-security", b"max-age=31536000"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *self._headers]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, with_headers)


class Cookies:
    """The session's cookie: out of scripts' reach, sent to us alone, and over TLS alone where there is TLS."""

    def __init__(self, *, https: bool, seconds: float) -> None:
        self._https = https
        self._seconds = int(seconds)
        self._name = "__Host-trimtab" if https else "trimtab"

    def read(self, request: Request) -> str:
        """The session's secret, empty where there is none."""
        return request.cookies.get(self._name, "")

    def write(self, response: Response, secret: str) -> None:
        """Keep it."""
        response.set_cookie(
            self._name,
            secret,
            max_age=self._seconds,
            path="/",
            secure=self._https,
            httponly=True,
            samesite="lax",
        )

    def clear(self, response: Response) -> None:
        """Forget it."""
        response.delete_cookie(self._name, path="/", secure=self._https, httponly=True, samesite="lax")


def csrf_token(secret: str) -> str:
    """What a page of this session shows and sends back; another site can neither read nor make it."""
    return hmac.new(secret.encode(), b"trimtab csrf", hashlib.sha256).hexdigest()


def check_own(request: Request, host: str) -> None:
    """Forbidden for a request that another site's page made. `host`: ours as browsers see it, empty: as asked."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("this request comes from another site")
    origin = request.headers.get("origin")
    expected = host or request.headers.get("host", "")
    if origin is not None and origin.partition("://")[2] != expected:
        raise Forbidden("this request comes from another site")


def check_csrf(request: Request, secret: str) -> None:
    """Forbidden without the session's token."""
    given = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode(), csrf_token(secret).encode()):
        raise Forbidden("the page is older than the sign-in: load it again")
