"""The HTTP application over a real table of models, asked in this process: no socket, no torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from services.common.access.gate import Gate
from services.common.errors import TrimtabError
from services.common.http_guard import Stage
from services.common.rules import make_rule
from services.models.facts import ModelFacts
from services.reward.administration import Administration
from services.reward.answering import Answering, CallLimits
from services.reward.config import SourceSpec
from services.reward.http.app import http_application
from services.reward.http.calls import HttpSettings
from services.reward.rewards.base import (
    Caller,
    RewardSource,
    ScoreOutcome,
    ScoreRow,
    SourceDescription,
    SourceKind,
)
from services.reward.rewards.rule import RuleReward
from services.reward.scoring import RewardModels
from services.reward.shadow import ShadowRunner

FINGERPRINT = "f" * 64


class Recorder:
    """A source that keeps what it was asked, and answers what it was told to; a row's own length otherwise.

    held: its futures end only when `release()` is called. kind and architecture: as a model of that sort says.
    """

    def __init__(
        self,
        outcomes: Sequence[ScoreOutcome] = (),
        *,
        kind: SourceKind = "model",
        digest: str = "d1",
        architecture: Any = "causal",
        refuses: TrimtabError | None = None,
        held: bool = False,
    ) -> None:
        self.kind: SourceKind = kind
        self.digest = digest
        self.rows: list[ScoreRow] = []
        self.callers: list[Caller] = []
        self.futures: list[Future[list[ScoreOutcome]]] = []
        self._outcomes = list(outcomes)
        self._architecture = architecture
        self._refuses = refuses
        self._held = threading.Event()
        if not held:
            self._held.set()

    def describe(self) -> SourceDescription:
        if self.kind == "rule":
            return SourceDescription()
        facts = ModelFacts(
            name="recorder",
            architecture=self._architecture,
            tokenizer_fingerprint=FINGERPRINT,
            chat_template_digest="",
            model_digest=self.digest,
            context_length=128,
            vocabulary_size=263,
            dtype="float32",
        )
        return SourceDescription(facts=facts, input_kind="messages", truncates="left", max_tokens=96)

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        if self._refuses is not None:
            raise self._refuses
        self.rows += rows
        self.callers.append(caller)
        future: Future[list[ScoreOutcome]] = Future()
        self.futures.append(future)
        if self._held.is_set():
            self._end(future, rows)
        return future

    def release(self) -> None:
        self._held.set()
        for future in self.futures:
            if not future.done():
                self._end(future, [])

    def close(self) -> None:
        self.release()

    def _end(self, future: Future[list[ScoreOutcome]], rows: Sequence[ScoreRow]) -> None:
        future.set_running_or_notify_cancel()
        future.set_result(self._outcomes or [ScoreOutcome(value=float(len(row.completion))) for row in rows])


@dataclass
class Around:
    """What the application under test is made of."""

    client: httpx.AsyncClient
    models: RewardModels
    stage: Stage = "serving"
    opened: list[SourceSpec] = field(default_factory=list)


@asynccontextmanager
async def served(
    sources: Mapping[str, RewardSource],
    *,
    settings: HttpSettings | None = None,
    gate: Gate | None = None,
    rows: int = 8,
    characters: int = 1000,
    opener: Callable[[SourceSpec, str], RewardSource] | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[Around]:
    models = RewardModels()
    for name, source in sources.items():
        models.add(name, source)
    around = Around(client=httpx.AsyncClient(), models=models)

    def open_rule(definition: SourceSpec, name: str) -> RewardSource:
        around.opened.append(definition)
        return RuleReward(make_rule(definition.rule))

    app = http_application(
        models,
        Answering(models, ShadowRunner(models), CallLimits(rows=rows, characters=characters)),
        Administration(models, opener or open_rule, lambda: None),
        settings=settings or HttpSettings(rows=rows),
        gate=gate,
        stage=lambda: around.stage,
    )
    transport = httpx.ASGITransport(app, client=("10.1.2.3", 4444))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        around.client = client
        yield around


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what another task or thread brings about; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.005)


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error content, after checking that it has the one form that errors have."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "violations"}
    assert body["error"]["code"] == code, body
    assert "\n" not in body["error"]["message"]
    content: dict[str, Any] = body["error"]
    return content
