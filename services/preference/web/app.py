"""The HTTP application: which path leads where, and what stands around it. Knows no page's content.

SecureHeaders ─▶ HttpGuard (admission, size, metrics) ─▶ route ─▶ who asks ─▶ annotating.py, owning.py
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.common.access.gate import Gate
from services.common.access.safety import is_loopback
from services.common.errors import TrimtabError, Unauthenticated, Unavailable
from services.common.http_guard import (
    AsgiApp,
    BodyReader,
    ClientGone,
    HttpGuard,
    HttpLimits,
    Stage,
    answer_for,
)
from services.common.http_status import HttpRefusal
from services.preference.config import PreferenceConfig, WebSpec
from services.preference.preferences import Preferences
from services.preference.web.annotating import AnnotatorRoutes
from services.preference.web.owning import OwnerRoutes
from services.preference.web.rendering import Renderer, static_routes, worker_route
from services.preference.web.security import Cookies, SecureHeaders
from services.preference.web.sessions import Sessions

HEALTH_PATHS = ("/healthz", "/readyz")
_BODY_BYTES = 1 << 20
_GONE = 499
_CODES = {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """The pages' part of the configuration. https: browsers reach us by TLS, ours or an ingress's."""

    web: WebSpec = field(default_factory=WebSpec)
    limits: HttpLimits = field(default_factory=lambda: HttpLimits(body_bytes=_BODY_BYTES))
    lease_seconds: float = 600.0
    https: bool = False
    local_names_only: bool = False

    @classmethod
    def of(cls, config: PreferenceConfig, gate: Gate) -> WebSettings:
        """What the service's configuration says."""
        url = config.web.public_url
        return cls(
            web=config.web,
            limits=HttpLimits(requests=config.server.max_queued_calls, body_bytes=_BODY_BYTES),
            lease_seconds=config.lease_seconds,
            https=url.startswith("https://") or (not url and config.tls is not None),
            local_names_only=is_loopback(config.server.host) and not gate.on and not url,
        )


def web_application(
    preferences: Preferences, settings: WebSettings, stage: Callable[[], Stage] = lambda: "serving"
) -> AsgiApp:
    """What HttpServer serves. While the service starts, all but health answers 503."""
    web = settings.web
    sessions = Sessions(
        preferences,
        Cookies(https=settings.https, seconds=web.session_hours * 3600),
        host=web.public_url.partition("://")[2],
        session_seconds=web.session_hours * 3600,
        requests_per_minute=web.requests_per_minute,
        sign_ins_per_minute=web.sign_ins_per_minute,
    )
    renderer = Renderer()
    bodies = BodyReader(settings.limits)
    annotating = AnnotatorRoutes(preferences, sessions, renderer, bodies, web)
    owning = OwnerRoutes(preferences, sessions, renderer, markdown=web.markdown)
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _Pages(renderer, stage).missing},
    )
    pages = _Pages(renderer, stage)
    for path, handler in {
        "/": annotating.home,
        "/join": annotating.join,
        "/label": annotating.page,
        "/overview": owning.overview,
        "/browse": owning.browse,
        "/export": owning.export,
    }.items():
        app.add_route(path, pages.page(handler), methods=["GET"])
    for path, handler in {
        "/api/sign-in": annotating.sign_in,
        "/api/sign-out": annotating.sign_out,
        "/api/tasks": annotating.tasks,
        "/api/answers": annotating.answers,
        "/api/release": annotating.release,
    }.items():
        app.add_route(path, pages.call(handler), methods=["POST"])
    for path in HEALTH_PATHS:
        app.add_route(path, pages.call(_health(stage, ready=path == "/readyz")), methods=["GET"])
    app.router.routes.extend([*static_routes(), worker_route()])
    guarded = HttpGuard(app, settings.limits, exempt=HEALTH_PATHS, local_names_only=settings.local_names_only)
    return SecureHeaders(guarded, https=settings.https)


def _health(stage: Callable[[], Stage], *, ready: bool) -> Handler:
    async def health(_: Request) -> Response:
        if ready and (now := stage()) != "serving":
            raise Unavailable(f"the preference service is {now}")
        return Response(
            '{"status": "ready"}' if ready else '{"status": "alive"}', media_type="application/json"
        )

    return health


class _Pages:
    """Handlers with their errors turned into answers: a page for people, JSON for the page's own calls."""

    def __init__(self, renderer: Renderer, stage: Callable[[], Stage]) -> None:
        self._renderer = renderer
        self._stage = stage

    def call(self, handler: Handler) -> Handler:
        """A call of the page's script."""

        async def endpoint(request: Request) -> Response:
            try:
                if request.url.path not in HEALTH_PATHS:
                    self._check_started()
                return await handler(request)
            except ClientGone:
                return Response(status_code=_GONE)
            except Exception as error:
                answer = answer_for(request.scope, error)
                return Response(answer.body, answer.status, dict(answer.headers))

        return endpoint

    def page(self, handler: Handler) -> Handler:
        """A page: strangers are led to the door."""

        async def endpoint(request: Request) -> Response:
            try:
                self._check_started()
                return await handler(request)
            except Unauthenticated:
                return RedirectResponse("/join", 303)
            except Exception as error:
                return self._failed(request, error)

        return endpoint

    async def missing(self, request: Request, error: Exception) -> Response:
        """What the router refuses: unknown paths and methods."""
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        status = error.status_code
        refusal = HttpRefusal(status, _CODES.get(status, "INTERNAL"), f"{request.method}: {error.detail}")
        return self._failed(request, refusal)

    def _failed(self, request: Request, error: Exception) -> Response:
        answer = answer_for(request.scope, error)
        known = isinstance(error, (TrimtabError, HttpRefusal))
        says = (
            str(error) if known else f"Something went wrong here. The log says more under {answer.incident}."
        )
        return self._renderer.page(
            "error.html", status=answer.status, headers=dict(answer.headers), code=answer.status, message=says
        )

    def _check_started(self) -> None:
        if self._stage() == "starting":
            raise Unavailable("the service is starting")
