"""GET /v1/models and what is told of a model. Knows no change of them: admin.py does."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from services.common.access.gate import Permit
from services.reward.scoring import RewardModels, Slot


class ModelAnswer(BaseModel):
    """One model or rule. score = gain * head + bias; lengths in tokens, 0: no limit or not known."""

    name: str
    kind: str = Field(description="model, process, rule, function, composite, running, remote or judge.")
    digest: str = Field(description="Equal digests score equally.")
    input: str = Field(description="text, messages or token_ids: what it reads best.")
    truncates: str = Field(description="left, right or never.")
    max_tokens: int
    gain: float
    bias: float
    shadow: str = Field(description="Scores the same rows, for comparison only; empty: none.")
    architecture: str
    dtype: str
    vocabulary_size: int
    tokenizer_fingerprint: str
    chat_template_digest: str


class ListedModel(BaseModel):
    """The same as OpenAI's clients read it."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelsAnswer(BaseModel):
    """All that the caller may use, by name; `object` and `data` are for OpenAI's clients."""

    models: list[ModelAnswer]
    object: str
    data: list[ListedModel]


def describe(slot: Slot) -> dict[str, Any]:
    """See ModelAnswer."""
    about = slot.source.describe()
    facts = about.facts
    return {
        "name": slot.name,
        "kind": slot.source.kind,
        "digest": slot.source.digest,
        "input": about.input_kind,
        "truncates": about.truncates,
        "max_tokens": about.max_tokens,
        "gain": about.gain,
        "bias": about.bias,
        "shadow": slot.shadow,
        "architecture": facts.architecture if facts else "",
        "dtype": facts.dtype if facts else "",
        "vocabulary_size": facts.vocabulary_size if facts else 0,
        "tokenizer_fingerprint": facts.tokenizer_fingerprint if facts else "",
        "chat_template_digest": facts.chat_template_digest if facts else "",
    }


def listing(models: RewardModels, permit: Permit) -> dict[str, Any]:
    """See ModelsAnswer; those that the caller may use."""
    slots = models.told_of(permit.may_use)
    return {
        "models": [describe(slot) for slot in slots],
        "object": "list",
        "data": [{"id": slot.name, "object": "model", "created": 0, "owned_by": "trimtab"} for slot in slots],
    }
