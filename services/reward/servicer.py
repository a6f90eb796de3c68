"""RewardService and RewardAdminService on the wire: messages to rows and back, nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from services.common.errors import Mismatch, UserError
from services.common.validation import Violations, require
from services.reward.config import NAME_PATTERN
from services.reward.rewards.base import RewardSource, ScoreOutcome, ScoreRow
from services.reward.scoring import RewardModels, Scored
from services.reward.shadow import ShadowRunner
from services.reward.wire import decode_row, encode_info, encode_score
from trimtab.reward.v1 import reward_pb2 as wire
from trimtab.reward.v1 import reward_pb2_grpc as wire_grpc

SERVICE_NAME = wire.DESCRIPTOR.services_by_name["RewardService"].full_name
ADMIN_SERVICE_NAME = wire.DESCRIPTOR.services_by_name["RewardAdminService"].full_name
# (location, name) -> source; runs on a thread.
Opener = Callable[[str, str], RewardSource]


class RewardServicer(wire_grpc.RewardServiceServicer):
    """Scores on the model's thread; the event loop decodes the next request meanwhile."""

    def __init__(
        self, models: RewardModels, executor: Executor, shadows: ShadowRunner, *, max_rows: int
    ) -> None:
        self._models = models
        self._executor = executor
        self._shadows = shadows
        self._max_rows = max_rows

    async def ListModels(self, request: wire.ListModelsRequest, context: Any) -> wire.ListModelsResponse:
        """Every model and rule, by name."""
        slots = [self._models.slot(name) for name in self._models.names()]
        return wire.ListModelsResponse(models=[encode_info(slot) for slot in slots])

    async def Score(self, request: wire.ScoreRequest, context: Any) -> wire.ScoreResponse:
        """One score for each input, in order; an input that cannot be read has an error in its place."""
        slot = self._models.slot(request.model)
        count = len(request.inputs)
        require(count > 0, "inputs", "expected at least one input, got nothing")
        require(
            count <= self._max_rows, "inputs", f"expected at most {self._max_rows} in one call, got {count}"
        )
        self._check_fingerprint(request)
        rows, unreadable = _decode_all(request.inputs)
        if not rows:
            raise unreadable[min(unreadable)]
        loop = asyncio.get_running_loop()
        readable = list(rows.values())
        scored = await loop.run_in_executor(self._executor, self._models.score, slot.name, readable)
        self._shadows.offer(scored, readable)
        return wire.ScoreResponse(scores=_merged(count, rows, unreadable, scored))

    def _check_fingerprint(self, request: wire.ScoreRequest) -> None:
        """A caller that names a tokenizer gets an answer only from a model that has the same."""
        facts = self._models.slot(request.model).source.describe().facts
        given = request.tokenizer_fingerprint
        if given and facts is not None and given != facts.tokenizer_fingerprint:
            raise Mismatch(
                f"tokenizer {given[:16]} was named, reward model {facts.name} has "
                f"{facts.tokenizer_fingerprint[:16]}"
            )


def _decode_all(
    inputs: Sequence[wire.ScoreInput],
) -> tuple[dict[int, ScoreRow], dict[int, UserError]]:
    rows: dict[int, ScoreRow] = {}
    unreadable: dict[int, UserError] = {}
    for index, row in enumerate(inputs):
        try:
            rows[index] = decode_row(row)
        except UserError as error:
            unreadable[index] = type(error)(f"inputs[{index}]: {error}")
    return rows, unreadable


def _merged(
    count: int, rows: dict[int, ScoreRow], unreadable: dict[int, UserError], scored: Scored
) -> list[Any]:
    outcomes = {index: ScoreOutcome(error=error) for index, error in unreadable.items()}
    outcomes.update(zip(rows, scored.outcomes, strict=True))
    return [encode_score(outcomes[index], scored, origin="reward") for index in range(count)]


class RewardAdminServicer(wire_grpc.RewardAdminServiceServicer):
    """Changes the table of models. Loading takes place beside scoring, the change itself at once."""

    def __init__(self, models: RewardModels, open_source: Opener, on_load: Callable[[], None]) -> None:
        self._models = models
        self._open = open_source
        self._on_load = on_load
        self._changing = asyncio.Lock()

    async def LoadModel(self, request: wire.LoadModelRequest, context: Any) -> wire.LoadModelResponse:
        """Load a model or rule behind a new name."""
        _check_names(request)
        async with self._changing:
            if request.name in self._models.names():
                # Refused before the seconds that loading takes.
                self._models.add(request.name, self._models.slot(request.name).source)
            self._models.add(request.name, await self._opened(request))
        self._on_load()
        return wire.LoadModelResponse(model=encode_info(self._models.slot(request.name)))

    async def UnloadModel(self, request: wire.UnloadModelRequest, context: Any) -> wire.UnloadModelResponse:
        """Take a model away."""
        require(bool(request.name), "name", "expected a name, got nothing")
        async with self._changing:
            self._models.remove(request.name)
        return wire.UnloadModelResponse()

    async def SwapModel(self, request: wire.SwapModelRequest, context: Any) -> wire.SwapModelResponse:
        """Put another model behind a name; calls that began before end on the old one."""
        _check_names(request)
        async with self._changing:
            self._models.slot(request.name)
            replaced = self._models.swap(request.name, await self._opened(request))
        return wire.SwapModelResponse(
            model=encode_info(self._models.slot(request.name)), replaced_digest=replaced
        )

    async def SetShadow(self, request: wire.SetShadowRequest, context: Any) -> wire.SetShadowResponse:
        """Let another model score the same rows for comparison."""
        require(bool(request.name), "name", "expected a name, got nothing")
        self._models.set_shadow(request.name, request.shadow)
        return wire.SetShadowResponse()

    async def _opened(self, request: wire.LoadModelRequest | wire.SwapModelRequest) -> RewardSource:
        return await asyncio.to_thread(self._open, request.path, request.name)


def _check_names(request: wire.LoadModelRequest | wire.SwapModelRequest) -> None:
    found = Violations()
    found.check(
        bool(re.match(NAME_PATTERN, request.name)) and len(request.name) <= 63,
        "name",
        "expected 1 to 63 letters, digits, dots, dashes or underscores",
    )
    found.check(bool(request.path), "path", "expected a folder or rule:<rule>, got nothing")
    found.raise_any()
