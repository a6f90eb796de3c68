"""Clients of RewardService and RewardAdminService.

with RewardClient("127.0.0.1:50053") as client:
    client.values(["How are you?"], ["Fine, thank you!"], model="hh")
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc

from trimtab.clients.base import AsyncClient, SyncClient
from trimtab.clients.errors import DataLossError
from trimtab.clients.inputs import chat_messages
from trimtab.clients.tensors import ids_tensor
from trimtab.common.v1 import common_pb2 as common
from trimtab.reward.v1 import reward_pb2 as wire
from trimtab.reward.v1 import reward_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from trimtab.reward.v1.reward_pb2_grpc import RewardAdminServiceAsyncStub, RewardServiceAsyncStub

Conversation = Sequence[Mapping[str, str]]


class RowError(Exception):
    """A row of a batch could not be scored. `index` is its place, `error` says why."""

    def __init__(self, index: int, error: common.ErrorInfo) -> None:
        super().__init__(f"inputs[{index}]: {error.code}: {error.message}")
        self.index = index
        self.error = error


def text_inputs(
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Sequence[Mapping[str, str]] | None = None,
) -> list[wire.ScoreInput]:
    """Inputs from prompts and completions as text; `columns` are data-set columns that rules may need."""
    if len(prompts) != len(completions) or (columns is not None and len(columns) != len(prompts)):
        raise ValueError("prompts, completions and columns must be of the same length")
    return [
        wire.ScoreInput(prompt=prompt, completion=completion, columns=columns[index] if columns else None)
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def conversation_inputs(conversations: Sequence[Conversation]) -> list[wire.ScoreInput]:
    """Inputs from whole conversations, the answer last."""
    return [wire.ScoreInput(messages=chat_messages(each)) for each in conversations]


def token_inputs(pairs: Sequence[tuple[Iterable[int], Iterable[int]]]) -> list[wire.ScoreInput]:
    """Inputs from (prompt ids, completion ids); `score` then needs the fingerprint of their tokenizer."""
    return [
        wire.ScoreInput(prompt_ids=ids_tensor(prompt), completion_ids=ids_tensor(completion))
        for prompt, completion in pairs
    ]


def error_of(score: common.Score) -> common.ErrorInfo | None:
    """Why a score has no value; None where it has one. NaN and infinity, which no service sends, are none."""
    if not score.HasField("value"):
        return score.error
    if not math.isfinite(score.value):
        return common.ErrorInfo(code="DATA_LOSS", message=f"the score is {score.value}", origin="client")
    return None


def values_or_raise(scores: Sequence[common.Score]) -> list[float]:
    """The scores' values. RowError for the first row that has none."""
    for index, score in enumerate(scores):
        error = error_of(score)
        if error is not None:
            raise RowError(index, error)
    return [score.value for score in scores]


def _scores_of(response: wire.ScoreResponse, count: int) -> list[common.Score]:
    if len(response.scores) != count:
        raise DataLossError(
            grpc.StatusCode.DATA_LOSS, f"expected {count} scores, the service sent {len(response.scores)}"
        )
    return list(response.scores)


def _definition(definition: Mapping[str, Any] | None) -> str:
    return "" if definition is None else json.dumps(definition)


class RewardClient(SyncClient):
    """Scores answers; loads and swaps reward models. Blocking."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._stub = wire_grpc.RewardServiceStub(self._channel)
        self._admin = wire_grpc.RewardAdminServiceStub(self._channel)

    def list_models(self, *, timeout_seconds: float | None = None) -> list[wire.RewardModelInfo]:
        """Every model and rule of the service."""
        return list(self._call(self._stub.ListModels, wire.ListModelsRequest(), timeout_seconds).models)

    def score(
        self,
        inputs: Sequence[wire.ScoreInput],
        *,
        model: str = "",
        tokenizer_fingerprint: str = "",
        timeout_seconds: float | None = None,
    ) -> list[common.Score]:
        """One score for each input, in order; a row that cannot be scored has an error and no value."""
        request = wire.ScoreRequest(model=model, inputs=inputs, tokenizer_fingerprint=tokenizer_fingerprint)
        return _scores_of(self._call(self._stub.Score, request, timeout_seconds), len(inputs))

    def values(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        model: str = "",
        columns: Sequence[Mapping[str, str]] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[float]:
        """Scores of plain text as numbers. RowError where a row has none."""
        inputs = text_inputs(prompts, completions, columns)
        return values_or_raise(self.score(inputs, model=model, timeout_seconds=timeout_seconds))

    def load_model(
        self,
        name: str,
        path: str = "",
        *,
        definition: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> wire.RewardModelInfo:
        """Load a folder, or rule:<rule>, or what a [[models]] table would define, behind a new name."""
        request = wire.LoadModelRequest(name=name, path=path, definition=_definition(definition))
        return self._call(self._admin.LoadModel, request, self._long(timeout_seconds)).model

    def unload_model(self, name: str, *, timeout_seconds: float | None = None) -> None:
        """Take a model away."""
        self._call(self._admin.UnloadModel, wire.UnloadModelRequest(name=name), timeout_seconds)

    def swap_model(
        self,
        name: str,
        path: str = "",
        *,
        definition: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> wire.SwapModelResponse:
        """Put another model behind a name; see load_model."""
        request = wire.SwapModelRequest(name=name, path=path, definition=_definition(definition))
        return self._call(self._admin.SwapModel, request, self._long(timeout_seconds))

    def set_shadow(self, name: str, shadow: str, *, timeout_seconds: float | None = None) -> None:
        """Let `shadow` score the same rows for comparison; "" ends that."""
        self._call(self._admin.SetShadow, wire.SetShadowRequest(name=name, shadow=shadow), timeout_seconds)


class AsyncRewardClient(AsyncClient):
    """Scores answers; loads and swaps reward models. For asyncio."""

    def __init__(self, target: Any, **options: Any) -> None:
        super().__init__(target, **options)
        self._stub = cast("RewardServiceAsyncStub", wire_grpc.RewardServiceStub(self._channel))
        self._admin = cast("RewardAdminServiceAsyncStub", wire_grpc.RewardAdminServiceStub(self._channel))

    async def list_models(self, *, timeout_seconds: float | None = None) -> list[wire.RewardModelInfo]:
        """Every model and rule of the service."""
        answer = await self._call(self._stub.ListModels, wire.ListModelsRequest(), timeout_seconds)
        return list(answer.models)

    async def score(
        self,
        inputs: Sequence[wire.ScoreInput],
        *,
        model: str = "",
        tokenizer_fingerprint: str = "",
        timeout_seconds: float | None = None,
    ) -> list[common.Score]:
        """One score for each input, in order; a row that cannot be scored has an error and no value."""
        request = wire.ScoreRequest(model=model, inputs=inputs, tokenizer_fingerprint=tokenizer_fingerprint)
        return _scores_of(await self._call(self._stub.Score, request, timeout_seconds), len(inputs))

    async def values(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        model: str = "",
        columns: Sequence[Mapping[str, str]] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[float]:
        """Scores of plain text as numbers. RowError where a row has none."""
        inputs = text_inputs(prompts, completions, columns)
        return values_or_raise(await self.score(inputs, model=model, timeout_seconds=timeout_seconds))

    async def load_model(
        self,
        name: str,
        path: str = "",
        *,
        definition: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> wire.RewardModelInfo:
        """Load a folder, or rule:<rule>, or what a [[models]] table would define, behind a new name."""
        request = wire.LoadModelRequest(name=name, path=path, definition=_definition(definition))
        return (await self._call(self._admin.LoadModel, request, self._long(timeout_seconds))).model

    async def unload_model(self, name: str, *, timeout_seconds: float | None = None) -> None:
        """Take a model away."""
        await self._call(self._admin.UnloadModel, wire.UnloadModelRequest(name=name), timeout_seconds)

    async def swap_model(
        self,
        name: str,
        path: str = "",
        *,
        definition: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> wire.SwapModelResponse:
        """Put another model behind a name; see load_model."""
        request = wire.SwapModelRequest(name=name, path=path, definition=_definition(definition))
        return await self._call(self._admin.SwapModel, request, self._long(timeout_seconds))

    async def set_shadow(self, name: str, shadow: str, *, timeout_seconds: float | None = None) -> None:
        """Let `shadow` score the same rows for comparison; "" ends that."""
        request = wire.SetShadowRequest(name=name, shadow=shadow)
        await self._call(self._admin.SetShadow, request, timeout_seconds)
