"""A trained reward model as a RewardSource. Owns what happens to rows that a model cannot score."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import structlog

from services.common.errors import InvalidInput, NotFound, ServiceError
from services.models.reward_model import RewardModel, ScoreText, load_reward_model
from services.reward.rewards.base import InputKind, ScoreOutcome, ScoreRow, SourceDescription, outcome_of

_log = structlog.get_logger(__name__)
_NO_LIMIT = 2**31 - 1


class ModelReward:
    """Scores by a reward model; its own gain and bias are applied, nothing else."""

    kind: Literal["model"] = "model"

    def __init__(self, model: RewardModel, *, token_budget: int) -> None:
        self._model = model
        self._token_budget = token_budget
        self._facts = model.facts()
        # The same model with no limit: it only encodes, to tell how much the limit cuts off.
        self._unlimited: Any = copy.copy(model)
        self._unlimited.settings = replace(model.settings, max_tokens=_NO_LIMIT)

    @property
    def digest(self) -> str:
        """BLAKE3 over weights, head, gain and bias, hex."""
        return self._facts.model_digest

    def describe(self) -> SourceDescription:
        """Reads text; a causal model with a chat template reads messages. The oldest tokens are cut."""
        settings = self._model.settings
        chat = settings.pooling == "last" and bool(self._facts.chat_template_digest)
        kind: InputKind = "messages" if chat else "text"
        return SourceDescription(
            facts=self._facts,
            input_kind=kind,
            truncates="left",
            max_tokens=settings.max_tokens,
            gain=settings.gain,
            bias=settings.bias,
        )

    def score(self, rows: Sequence[ScoreRow]) -> list[ScoreOutcome]:
        """See RewardSource.score. A batch that fails is scored row by row, so that one row fails alone."""
        texts = [ScoreText(row.messages, row.completion) for row in rows]
        try:
            values = self._model.score(texts, token_budget=self._token_budget)
        except Exception:  # whatever tokenizer or model raise on a strange row
            if len(texts) == 1:
                _log.exception("a row could not be scored", model=self._model.name)
                return [ScoreOutcome(error=ServiceError("the reward model failed on this row"))]
            return [outcome for row in rows for outcome in self.score([row])]
        return [
            outcome_of(value, truncated_tokens=self._overflow(text))
            for value, text in zip(values, texts, strict=True)
        ]

    def _overflow(self, text: ScoreText) -> int:
        ids, _ = self._unlimited.encode(text)
        return max(0, len(ids) - self._model.settings.max_tokens)


def open_model(
    path: str, *, dtype: str, device: str, threads: int, token_budget: int, name: str
) -> ModelReward:
    """A reward model from a local folder of safetensors; anything else could run code and is refused."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise NotFound(f"reward model {path}: no such folder")
    if not any(folder.glob("*.safetensors")):
        raise InvalidInput(
            f"reward model {path}: only safetensors are accepted, and the folder has none",
            {"path": "a folder with safetensors"},
        )
    model = load_reward_model(path, dtype=dtype, threads=threads, device=device, name=name)
    return ModelReward(model, token_budget=token_budget)
