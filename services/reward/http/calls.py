"""One scoring request from its bytes to its bytes, for every shape. Knows no shape's fields and no route.

    who calls ─▶ read and parse the body ─▶ may it use the model? ─▶ rows ─▶ answering.answer ─▶ write
                                                                             ▲ given up when the caller hangs up

Strangers are told so before their body is read: they cannot fill the memory.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from services.common.access.credentials import API_KEY, AUTHORIZATION, name_in_certificate, presented_key
from services.common.access.gate import Gate, Permit
from services.common.access.permit import entered
from services.common.access.safety import is_loopback
from services.common.errors import InvalidInput, Mismatch, Unavailable
from services.common.http_guard import BodyReader, ClientGone, HttpLimits, Stage, header
from services.common.validation import require
from services.reward.answering import Answering
from services.reward.config import RewardConfig
from services.reward.http.shapes import Query, Shape, parse
from services.reward.rewards.base import Caller
from services.reward.scoring import RewardModels, Scored, Slot

TIMEOUT_HEADER = "x-request-timeout"
MODEL_HEADER = "x-trimtab-model"
DIGEST_HEADER = "x-trimtab-model-digest"
AccessScope = Literal["score", "admin"]
# As the page says.
_LONGEST = {"model": 63, "key": 63, "tokenizer_fingerprint": 128}
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """limits: of requests and bodies. deadline_seconds: for requests without one, and the most they may ask.

    rows: of one request, as the page says; Answering enforces it. local_names_only: see HttpGuard.
    """

    limits: HttpLimits = field(default_factory=HttpLimits)
    deadline_seconds: float = 600.0
    rows: int = 4096
    local_names_only: bool = False

    @classmethod
    def of(cls, config: RewardConfig, gate: Gate) -> HttpSettings:
        """What the service's configuration says; gRPC's limits hold here too."""
        server = config.server
        limits = HttpLimits(requests=server.max_queued_calls, body_bytes=server.max_message_mib << 20)
        return cls(
            limits=limits,
            deadline_seconds=server.default_deadline_seconds,
            rows=config.max_rows,
            local_names_only=is_loopback(server.host) and not gate.on,
        )


class Calls:
    """What all routes share: who asks, by when, and scoring itself."""

    def __init__(
        self,
        models: RewardModels,
        answering: Answering,
        gate: Gate,
        settings: HttpSettings,
        stage: Callable[[], Stage],
    ) -> None:
        self._models = models
        self._answering = answering
        self._gate = gate
        self._settings = settings
        self._bodies = BodyReader(settings.limits)
        self._stage = stage

    def permitted(self, request: Request, scope: AccessScope) -> Permit:
        """Who asks. Unauthenticated or Forbidden before any work, Unavailable before the service is ready."""
        presented = presented_key(_header(request, AUTHORIZATION), _header(request, API_KEY))
        certificate = request.scope.get("state", {}).get("peer_certificate")
        permit = self._gate.permit(presented, name_in_certificate(certificate), scope)
        if self._stage() == "starting":
            raise Unavailable("the reward service is starting")
        return permit

    async def parsed(self, request: Request, kind: type[BaseModel]) -> Any:
        """The body as a `kind`; see BodyReader.body and shapes.parse for what is raised."""
        async with self._bodies.body(request.scope, request.receive) as raw:
            return parse(kind, raw)

    async def score(self, request: Request, shape: Shape[Any]) -> Response:
        """Answer one request of this shape."""
        caller = self._caller(request)
        query = _query(request)
        permit = self.permitted(request, "score")
        caller = replace(caller, client=permit.name or _peer(request))
        with entered(permit):
            body = await self.parsed(request, shape.body)
            slot = self._slot(permit, query.model or shape.model(body))
            _check_fingerprint(slot, shape.fingerprint(body))
            rows = shape.rows(body, replace(query, whole=_reads_whole(slot)))
            if not rows and shape.takes_nothing:
                nothing = Scored(name=slot.name, source=slot.source, digest="", outcomes=[])
                return _written(shape.answer(body, query, nothing), {})
            self._answering.check_count(len(rows))
            with permit.spent_on(slot.name, len(rows)):
                scored = await _unless_gone(request, self._answering.answer(slot.name, rows, caller))
        named = {MODEL_HEADER: scored.name, DIGEST_HEADER: ", ".join(sorted(scored.digests))}
        return _written(shape.answer(body, query, scored), named)

    def _slot(self, permit: Permit, name: str) -> Slot:
        # A key of one model hears nothing of what others there are.
        if name:
            permit.check(model=name)
        slot = self._models.slot(name, told=permit.may_use)
        permit.check(model=slot.name)
        return slot

    def _caller(self, request: Request) -> Caller:
        most = self._settings.deadline_seconds
        text = _header(request, TIMEOUT_HEADER)
        try:
            seconds = float(text) if text else most
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            raise InvalidInput(
                f"{TIMEOUT_HEADER}: expected seconds above 0, got {str(text)[:32]!r}",
                {TIMEOUT_HEADER: "seconds above 0"},
            )
        return Caller(deadline=time.monotonic() + min(seconds, most))


def json_response(content: Any, status: int = 200) -> Response:
    """JSON, floats in the shortest form that reads back as the same number."""
    return Response(to_json(content), status, media_type="application/json")


def _written(content: Any, headers: Mapping[str, str]) -> Response:
    return Response(to_json(content), 200, headers, media_type="application/json")


def _query(request: Request) -> Query:
    given = request.query_params
    rendered = given.get("rendered", "")
    require(not rendered or rendered in _FLAGS, "rendered", "expected true or false")
    for name, most in _LONGEST.items():
        require(len(given.get(name, "")) <= most, name, f"expected at most {most} characters")
    return Query(
        model=given.get("model", ""),
        rendered=_FLAGS.get(rendered),
        key=given.get("key", ""),
        tokenizer_fingerprint=given.get("tokenizer_fingerprint", ""),
    )


def _header(request: Request, name: str) -> str | None:
    return header(request.scope, name.encode()) or None


def _peer(request: Request) -> str:
    client = request.scope.get("client")
    return "http" if client is None else f"http:{client[0]}"


def _reads_whole(slot: Slot) -> bool:
    facts = slot.source.describe().facts
    return slot.source.kind == "model" and facts is not None and facts.architecture == "causal"


def _check_fingerprint(slot: Slot, given: str) -> None:
    """A caller that names a tokenizer gets an answer only from a model that has the same."""
    facts = slot.source.describe().facts
    if given and facts is not None and given != facts.tokenizer_fingerprint:
        raise Mismatch(
            f"tokenizer {given[:16]} was named, reward model {slot.name} has {facts.tokenizer_fingerprint[:16]}"
        )


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, Scored]) -> Scored:
    """The answer, unless the caller hangs up first: then it is cancelled, which drops its rows."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientGone
    finally:
        gone.cancel()
        work.cancel()
        # An error that nobody is left to hear of is no warning either.
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
