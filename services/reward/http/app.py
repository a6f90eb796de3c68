"""The HTTP application: which route leads where, and what the OpenAPI page says of it. Knows no shape's fields.

Decision: bodies are read and parsed by ourselves, so that size and form are checked before anything is built of them
and every error has the one form of services/common/http_status.py; FastAPI routes, and writes the page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Route

from services.common.access.gate import Gate
from services.common.errors import Unavailable
from services.common.http_guard import AsgiApp, ClientGone, HttpGuard, Stage, answer_for
from services.common.http_status import HttpAnswer, HttpRefusal
from services.reward.administration import Administration
from services.reward.answering import Answering
from services.reward.http import docs, openapi
from services.reward.http.admin import (
    AdminRoutes,
    LoadAnswer,
    LoadRequest,
    ShadowRequest,
    SwapAnswer,
    SwapRequest,
)
from services.reward.http.calls import Calls, HttpSettings, json_response
from services.reward.http.models import ModelsAnswer, listing
from services.reward.http.openrlhf import OpenRlhfShape, RewardAnswer
from services.reward.http.score import ScoreAnswer, ScoreShape
from services.reward.http.shapes import Shape
from services.reward.http.slime import SlimeShape
from services.reward.http.tei import Prediction, PredictShape
from services.reward.http.vllm import ClassifyAnswer, ClassifyShape, PoolingAnswer, PoolingShape
from services.reward.scoring import RewardModels

HEALTH_PATHS = ("/healthz", "/readyz")
Handler = Callable[[Request], Awaitable[Response]]
_CODES = {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}
_GONE = 499


@dataclass(frozen=True, slots=True)
class _Scoring:
    """A scoring route: where, how it is asked, what it answers, and parameters of its own."""

    path: str
    shape: Shape[Any]
    answer: Any
    summary: str
    parameters: tuple[dict[str, Any], ...] = ()


_KEY = openapi.query_parameter(
    "key", {"type": "string", "maxLength": 63}, "Answer an object with the number under this name."
)
_FINGERPRINT = openapi.query_parameter(
    "tokenizer_fingerprint", {"type": "string", "maxLength": 128}, "Whose token ids the body holds."
)
_TEXT = (openapi.MODEL_PARAMETER, openapi.RENDERED_PARAMETER)
_SCORING = (
    _Scoring("/v1/score", ScoreShape(), ScoreAnswer, "Score texts, conversations or token ids"),
    _Scoring("/get_reward", OpenRlhfShape(), RewardAnswer, "As OpenRLHF's remote URL asks", _TEXT),
    _Scoring("/classify", ClassifyShape(), ClassifyAnswer, "As vLLM's /classify", (*_TEXT, _FINGERPRINT)),
    _Scoring("/pooling", PoolingShape(), PoolingAnswer, "As vLLM's /pooling", (*_TEXT, _FINGERPRINT)),
    _Scoring(
        "/predict",
        PredictShape(),
        list[Prediction] | list[list[Prediction]],
        "As text-embeddings-inference's /predict",
        _TEXT,
    ),
    _Scoring("/slime", SlimeShape(), float | dict[str, float], "As slime's remote_rm asks", (*_TEXT, _KEY)),
)


def build_app(
    models: RewardModels,
    answering: Answering,
    administration: Administration,
    *,
    settings: HttpSettings | None = None,
    gate: Gate | None = None,
    stage: Callable[[], Stage] = lambda: "serving",
) -> FastAPI:
    """The routes, without the guard around them: see `http_application`."""
    settings = settings or HttpSettings()
    calls = Calls(models, answering, gate or Gate(), settings, stage)
    app = _Application(settings)
    for route in _SCORING:
        _add_scoring(app, calls, route)
    _add_models(app, calls, models, AdminRoutes(calls, administration))
    _add_health(app, stage)
    return app


def http_application(
    models: RewardModels,
    answering: Answering,
    administration: Administration,
    *,
    settings: HttpSettings | None = None,
    gate: Gate | None = None,
    stage: Callable[[], Stage] = lambda: "serving",
) -> AsgiApp:
    """What HttpServer serves: `build_app` behind admission, health in front of it.

    `stage` is asked at every request: while it starts, all but /healthz answers 503; while it drains, /readyz does.
    """
    settings = settings or HttpSettings()
    app = build_app(models, answering, administration, settings=settings, gate=gate, stage=stage)
    return HttpGuard(app, settings.limits, exempt=HEALTH_PATHS, local_names_only=settings.local_names_only)


class _Application(FastAPI):
    """FastAPI with our errors and our page."""

    def __init__(self, settings: HttpSettings) -> None:
        super().__init__(
            title="Trimtab reward service",
            description="Reward models and rules behind one scoring API. A score is a value or an error, never "
            "0 or NaN for a failure, and names the digest that made it.",
            version="1",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            exception_handlers={HTTPException: _refused},
        )
        self._settings = settings
        self._page: dict[str, Any] = {}
        self._bodies: list[type[BaseModel]] = []
        self.add_route("/docs", self._docs, include_in_schema=False)

    def takes(self, body: type[BaseModel]) -> dict[str, Any]:
        """`openapi_extra` for an operation with this body, whose schema the page will have."""
        self._bodies.append(body)
        return openapi.request_body(body)

    def openapi(self) -> dict[str, Any]:
        """The page, made once."""
        if not self._page:
            self._page = openapi.complete(super().openapi(), self._bodies, rows=self._settings.rows)
        return self._page

    async def _docs(self, _: Request) -> Response:
        return HTMLResponse(
            docs.page(self.openapi()),
            headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )


def _add_scoring(app: _Application, calls: Calls, route: _Scoring) -> None:
    async def score(request: Request) -> Response:
        return await calls.score(request, route.shape)

    extra = app.takes(route.shape.body) | {"parameters": [*route.parameters, openapi.TIMEOUT_PARAMETER]}
    _add(
        app,
        "POST",
        route.path,
        score,
        answer=route.answer,
        summary=route.summary,
        extra=extra,
        headers=openapi.SCORED_HEADERS,
    )


def _add_models(app: _Application, calls: Calls, models: RewardModels, admin: AdminRoutes) -> None:
    async def list_models(request: Request) -> Response:
        return json_response(listing(models, calls.permitted(request, "score")))

    one = {"parameters": [openapi.name_parameter()]}
    path = "/v1/admin/models"
    _add(
        app,
        "GET",
        "/v1/models",
        list_models,
        answer=ModelsAnswer,
        summary="Every model and rule that the caller may use, by name",
    )
    _add(
        app,
        "POST",
        path,
        admin.load,
        answer=LoadAnswer,
        summary="Load a model or rule behind a new name",
        extra=app.takes(LoadRequest),
        status=201,
    )
    _add(
        app,
        "PUT",
        f"{path}/{{name}}",
        admin.swap,
        answer=SwapAnswer,
        summary="Put another model behind a name",
        extra=app.takes(SwapRequest) | one,
    )
    _add(
        app,
        "DELETE",
        f"{path}/{{name}}",
        admin.unload,
        summary="Take a model away",
        extra=one,
        status=204,
    )
    _add(
        app,
        "PUT",
        f"{path}/{{name}}/shadow",
        admin.set_shadow,
        summary="Let another model score the same rows, for comparison only",
        extra=app.takes(ShadowRequest) | one,
        status=204,
    )


def _add_health(app: FastAPI, stage: Callable[[], Stage]) -> None:
    async def healthz(_: Request) -> Response:
        return json_response({"status": "alive"})

    async def readyz(_: Request) -> Response:
        if (now := stage()) != "serving":
            raise Unavailable(f"the reward service is {now}")
        return json_response({"status": "ready"})

    answer = dict[str, str]
    statuses = openapi.error_responses((405, 500))
    for path, handler, summary, responses in (
        ("/healthz", healthz, "Whether the process lives", statuses),
        ("/readyz", readyz, "Whether it can score", statuses | openapi.error_responses((503,))),
    ):
        app.add_api_route(
            path, _answered(handler), response_model=answer, summary=summary, responses=responses
        )


def _add(
    app: FastAPI,
    method: str,
    path: str,
    handler: Handler,
    *,
    summary: str,
    answer: Any = None,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, Any] | None = None,
    status: int = 200,
) -> None:
    statuses = openapi.BODY_STATUSES if extra and "requestBody" in extra else openapi.PLAIN_STATUSES
    responses = openapi.error_responses((*statuses, 409) if "/admin/" in path else statuses)
    if headers:
        responses[status] = {"headers": dict(headers)}
    app.add_api_route(
        path,
        _answered(handler),
        methods=[method],
        response_model=answer,
        status_code=status,
        summary=summary,
        description=handler.__doc__ or summary,
        responses=responses,
        openapi_extra=dict(extra or {}),
        operation_id=f"{method.lower()}_{path.strip('/').translate(_FLAT)}",
    )


_FLAT = str.maketrans("/", "_", "{}")


def _answered(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """The handler, its errors turned into answers here, where nothing has been sent yet."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGone:
            return Response(status_code=_GONE)
        except Exception as error:
            return _response(answer_for(request.scope, error))

    return endpoint


async def _refused(request: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    code = _CODES.get(error.status_code, "INTERNAL")
    headers: tuple[tuple[str, str], ...] = ()
    if error.status_code == 405:
        # The router names the methods of the first route alone.
        headers = (("allow", ", ".join(_methods(request))),)
    refusal = HttpRefusal(
        error.status_code, code, f"{request.method} {request.url.path[:200]}: {error.detail}", headers
    )
    return _response(answer_for(request.scope, refusal))


def _methods(request: Request) -> list[str]:
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in here for method in route.methods or ()})


def _response(answer: HttpAnswer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers))
