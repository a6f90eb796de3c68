"""RewardService and RewardAdminService on the wire: messages to rows and back, nothing else."""

from __future__ import annotations

import time
from typing import Any

from services.common.access import current
from services.common.errors import Mismatch, UserError
from services.reward.administration import Administration, parse_definition
from services.reward.answering import Answering, Decoded
from services.reward.rewards.base import Caller
from services.reward.scoring import RewardModels, Slot
from services.reward.wire import decode_row, encode_info, encode_score
from trimtab.reward.v1 import reward_pb2 as wire
from trimtab.reward.v1 import reward_pb2_grpc as wire_grpc

SERVICE_NAME = wire.DESCRIPTOR.services_by_name["RewardService"].full_name
ADMIN_SERVICE_NAME = wire.DESCRIPTOR.services_by_name["RewardAdminService"].full_name


class RewardServicer(wire_grpc.RewardServiceServicer):
    """Scores behind a queue; the event loop decodes the next request meanwhile."""

    def __init__(self, models: RewardModels, answering: Answering) -> None:
        self._models = models
        self._answering = answering

    async def ListModels(self, request: wire.ListModelsRequest, context: Any) -> wire.ListModelsResponse:
        """Every model and rule that the caller may use, by name."""
        slots = self._models.told_of(current().may_use)
        return wire.ListModelsResponse(models=[encode_info(slot) for slot in slots])

    async def Score(self, request: wire.ScoreRequest, context: Any) -> wire.ScoreResponse:
        """One score for each input, in order; an input that cannot be read has an error in its place."""
        permit = current()
        # A key of some models hears nothing of what others there are.
        if request.model:
            permit.check(model=request.model)
        slot = self._models.slot(request.model, told=permit.may_use)
        self._answering.check_count(len(request.inputs))
        _check_fingerprint(slot, request.tokenizer_fingerprint)
        with permit.spent_on(slot.name, len(request.inputs)):
            rows = [_decoded(row, request.tokenizer_fingerprint) for row in request.inputs]
            scored = await self._answering.answer(slot.name, rows, _caller(context, permit.name))
        return wire.ScoreResponse(
            scores=[encode_score(outcome, scored, origin="reward") for outcome in scored.outcomes]
        )


class RewardAdminServicer(wire_grpc.RewardAdminServiceServicer):
    """Changes the table of models; see administration.py."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def LoadModel(self, request: wire.LoadModelRequest, context: Any) -> wire.LoadModelResponse:
        """Load a source behind a new name."""
        definition = parse_definition(request.name, request.path, request.definition)
        slot = await self._administration.load(request.name, definition)
        return wire.LoadModelResponse(model=encode_info(slot))

    async def UnloadModel(self, request: wire.UnloadModelRequest, context: Any) -> wire.UnloadModelResponse:
        """Take a model away."""
        await self._administration.unload(request.name)
        return wire.UnloadModelResponse()

    async def SwapModel(self, request: wire.SwapModelRequest, context: Any) -> wire.SwapModelResponse:
        """Put another source behind a name; calls that began before end on the old one."""
        definition = parse_definition(request.name, request.path, request.definition)
        slot, replaced = await self._administration.swap(request.name, definition)
        return wire.SwapModelResponse(model=encode_info(slot), replaced_digest=replaced)

    async def SetShadow(self, request: wire.SetShadowRequest, context: Any) -> wire.SetShadowResponse:
        """Let another model score the same rows for comparison."""
        await self._administration.set_shadow(request.name, request.shadow)
        return wire.SetShadowResponse()


def _check_fingerprint(slot: Slot, given: str) -> None:
    """A caller that names a tokenizer gets an answer only from a model that has the same."""
    facts = slot.source.describe().facts
    if given and facts is not None and given != facts.tokenizer_fingerprint:
        raise Mismatch(
            f"tokenizer {given[:16]} was named, reward model {facts.name} has "
            f"{facts.tokenizer_fingerprint[:16]}"
        )


def _decoded(row: wire.ScoreInput, fingerprint: str) -> Decoded:
    try:
        return decode_row(row, fingerprint)
    except UserError as error:
        return error


def _caller(context: Any, name: str) -> Caller:
    """Who asks, by its key's name or else its address; what has not begun by its deadline is dropped."""
    remaining = context.time_remaining()
    return Caller(
        client=name or context.peer(), deadline=None if remaining is None else time.monotonic() + remaining
    )
