"""Another reward service as a RewardSource. Owns which digest its scores carry; transports own the wires.

Decision: every outcome names the digest that its answer named, since the model over there can be swapped at any time,
and behind a load balancer two replicas may differ. The source's own digest is the one seen last: on opening what the
service lists, then what it answers. A service that names none has a digest of its URL and model: what changes behind
that cannot be seen. Rejected: one digest for the source alone, which would be wrong from a swap to the next look.

A digest that the spec pins is held against what is listed on opening and against every outcome.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import structlog

from services.common.digests import same_digest
from services.common.errors import Corrupted, InvalidInput, Mismatch, NotFound, ServiceError, TrimtabError
from services.reward.config import RemoteSpec
from services.reward.rewards.base import Caller, ScoreOutcome, ScoreRow, SourceDescription
from services.reward.rewards.calling import Calls
from services.reward.rewards.pool import RowPool

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """One model of the other service, as it lists it."""

    name: str
    digest: str
    about: SourceDescription


class Transport(Protocol):
    """A way to the other service. `ends` is of time.monotonic. Methods raise TryAgain or a TrimtabError."""

    def models(self, ends: float) -> list[RemoteModel] | None:
        """What it has; None where it cannot say."""
        ...

    def score(
        self, rows: Sequence[ScoreRow], model: str, fingerprint: str, ends: float
    ) -> list[ScoreOutcome]:
        """One outcome for each row, with the digest that the answer names, if any."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class RemoteReward:
    """Scores by the model `spec.model` of the service at `spec.url`; one call there for each call here.

    Errors that a row has there it has here. Where the call fails, every row has its error: UNAVAILABLE,
    DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED. A score of another model than the pinned one is FAILED_PRECONDITION.
    """

    kind: Literal["remote"] = "remote"

    def __init__(self, spec: RemoteSpec, *, max_queued_rows: int = 16384) -> None:
        self._spec = spec
        self._calls = Calls(
            spec.url,
            timeout_seconds=spec.timeout_seconds,
            attempts=spec.attempts,
            failures=spec.breaker_failures,
            open_seconds=spec.breaker_seconds,
        )
        self._transport = transport_of(spec)
        try:
            self._seen = self._look()
            self._check(self._seen.digest)
        except BaseException:
            self._transport.close()
            raise
        self._pool = RowPool(
            f"remote {spec.model or spec.url}", threads=spec.concurrent_calls, max_rows=max_queued_rows
        )

    @property
    def digest(self) -> str:
        """What the other service named last."""
        return self._seen.digest

    def describe(self) -> SourceDescription:
        """As the other service describes its model."""
        return self._seen.about

    def submit(self, rows: Sequence[ScoreRow], caller: Caller) -> Future[list[ScoreOutcome]]:
        """See RewardSource.submit."""
        return self._pool.submit(rows, caller, lambda taken: self._score(taken, caller))

    def close(self) -> None:
        """See RewardSource.close."""
        self._pool.close()
        self._transport.close()

    def _score(self, rows: Sequence[ScoreRow], caller: Caller) -> list[ScoreOutcome]:
        outcomes: dict[int, ScoreOutcome] = {}
        kinds: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            if row.rendered:
                outcomes[index] = ScoreOutcome(
                    error=Mismatch("a text with its chat template cannot be forwarded")
                )
            else:
                kinds.setdefault(row.ids.fingerprint if row.ids else "", []).append(index)
        # One call as a rule: only rows of several tokenizers, or ids beside text, need several.
        for fingerprint, indices in kinds.items():
            scored = self._ask([rows[index] for index in indices], fingerprint, caller)
            outcomes.update(zip(indices, scored, strict=True))
        return [outcomes[index] for index in range(len(rows))]

    def _ask(self, rows: Sequence[ScoreRow], fingerprint: str, caller: Caller) -> list[ScoreOutcome]:
        def attempt(ends: float) -> list[ScoreOutcome]:
            return self._transport.score(rows, self._spec.model, fingerprint, ends)

        try:
            outcomes = self._calls.call(attempt, caller)
        except TrimtabError as error:
            return [ScoreOutcome(error=error)] * len(rows)
        if len(outcomes) != len(rows):
            short = ServiceError(f"{self._spec.url} answered {len(outcomes)} scores for {len(rows)} rows")
            return [ScoreOutcome(error=short)] * len(rows)
        digest = next((outcome.digest for outcome in outcomes if outcome.digest), "")
        if digest and digest != self._seen.digest:
            self._follow(digest)
        fallback = self._seen.digest
        return [self._checked(replace(outcome, digest=outcome.digest or fallback)) for outcome in outcomes]

    def _checked(self, outcome: ScoreOutcome) -> ScoreOutcome:
        """The outcome; an error in its place where another model than the pinned one gave it, or no finite number."""
        if not all(map(math.isfinite, (*outcome.components.values(), *outcome.steps))):
            error = Corrupted(f"{self._spec.url} answered a component or step that is not a finite number")
            return ScoreOutcome(error=error, digest=outcome.digest)
        try:
            self._check(outcome.digest)
        except Mismatch as error:
            return ScoreOutcome(error=error, digest=outcome.digest)
        return outcome

    def _check(self, digest: str) -> None:
        pinned = self._spec.digest
        if pinned is not None and not same_digest(digest, pinned):
            raise Mismatch(f"{self._spec.url} serves {digest or 'no digest'}, pinned is {pinned}")

    def _follow(self, digest: str) -> None:
        """The model over there was swapped: its description may have changed as well."""
        _log.warning("remote model swapped", url=self._spec.url, before=self._seen.digest, now=digest)
        try:
            seen = self._look()
        except TrimtabError:
            seen = self._seen
        self._seen = replace(seen, digest=digest)

    def _look(self) -> RemoteModel:
        spec = self._spec
        models = self._calls.call(self._transport.models, Caller())
        if models is None:
            content = json.dumps(["remote", 1, spec.url, spec.model])
            digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
            return RemoteModel(name=spec.model, digest=digest, about=SourceDescription())
        matching = [model for model in models if model.name == spec.model or not spec.model]
        if len(matching) == 1:
            return matching[0]
        there = ", ".join(sorted(model.name for model in models)) or "none"
        if matching:
            raise InvalidInput(
                f"{spec.url} has several models, name one of {there}", {"remote.model": "a name"}
            )
        raise NotFound(f"{spec.url} has no model {spec.model or 'at all'}; there are: {there}")


def transport_of(spec: RemoteSpec) -> Transport:
    """By the URL's scheme. InvalidInput for another, or for a key that would travel in the clear."""
    scheme = spec.url.partition("://")[0]
    if scheme in ("grpc", "grpcs"):
        from services.reward.rewards.remote_grpc import GrpcTransport

        return GrpcTransport(spec)
    if scheme in ("http", "https"):
        from services.reward.rewards.remote_http import HttpTransport

        return HttpTransport(spec)
    raise InvalidInput(
        f"{spec.url!r}: expected grpc://, grpcs://, http:// or https://",
        {"remote.url": "a scheme and a host"},
    )
