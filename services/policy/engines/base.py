"""The port of a generation engine: token ids in, token ids and log-probs out, weights swapped on demand.

Owns the words of generation; knows neither grpc, redis nor rewards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput
from services.common.mask_bits import MaskBits

if TYPE_CHECKING:
    import torch

    from services.models.facts import ModelFacts

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Finish = Literal["stop", "length"]
# token_ids: prompts and completions are ids, not text. raw_logprobs: the model's own, at temperature 1, nothing masked.
# sampled_logprobs: of the distribution that was drawn from. weight_updates: takes new weights. stop_strings, seeds:
# honours them. resume: goes on from a draft. logits_processors: masks and value-guided decoding. adapters: merges
# low-rank factors that come as weights.
Capability = Literal[
    "token_ids",
    "raw_logprobs",
    "sampled_logprobs",
    "weight_updates",
    "stop_strings",
    "resume",
    "seeds",
    "logits_processors",
    "adapters",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. A temperature of 0 is greedy; top_k 0 and top_p 1 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A completion as far as it got; finish is None while unfinished.

    All arrays have the same length, but for log-probs that the engine does not give: those are empty. masks: where
    something bounds what may be drawn, what could be at each token (services/common/mask_bits.py).
    """

    token_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int32))
    raw_logprobs: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    sampled_logprobs: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    masks: MaskBits | None = None
    finish: Finish | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to make (or to go on with, from `draft`).

    The draw of token t depends on (sampling.seed, index, t) alone, never on what else shares the batch.
    """

    prompt_ids: Ids
    sampling: Sampling
    index: int = 0
    draft: Draft = field(default_factory=Draft)


# Called from the engine's thread for each token: index of the request, token id, raw log-prob (NaN: not given).
Emit = Callable[[int, int, float], None]


class Engine(Protocol):
    """What generates. Not thread-safe: one thread at a time calls it."""

    name: str
    capabilities: frozenset[Capability]
    facts: ModelFacts

    def generate(
        self, requests: Sequence[Request], stopping: threading.Event, emit: Emit | None = None
    ) -> list[Draft]:
        """A draft for each request, finished unless `stopping` was set in the middle."""
        ...

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy new values into the named tensors, all or none. Raises Mismatch for a wrong name or shape."""
        ...

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Names and tensors that are served now."""
        ...

    def close(self) -> None:
        """Let go of connections and processes; called once, at the end."""
        ...

    def decode(self, token_ids: Ids) -> str:
        """Text of a completion, special tokens left out."""
        ...


def check_request(request: Request, facts: ModelFacts) -> None:
    """Raises InvalidInput for a prompt that the model cannot be given, or that leaves no room for an answer."""
    prompt = request.prompt_ids
    if len(prompt) == 0:
        raise InvalidInput("the prompt has no tokens", {"prompt.token_ids": "at least one token"})
    if int(prompt.min()) < 0 or int(prompt.max()) >= facts.vocabulary_size:
        raise InvalidInput(
            f"a token id lies outside the vocabulary of {facts.vocabulary_size}",
            {"prompt.token_ids": f"0 … {facts.vocabulary_size - 1}"},
        )
    if facts.context_length and len(prompt) >= facts.context_length:
        raise InvalidInput(
            f"the prompt has {len(prompt)} tokens; the context of {facts.context_length} leaves no room",
            {"prompt.token_ids": f"at most {facts.context_length - 1} tokens"},
        )
