"""A completion in the making, and what ends it. Pure; knows no model and no tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.policy.engines.base import Draft, Emit, Finish, Ids, Request
from services.policy.engines.sampling import uniforms

# Tokens beside the stop string's bytes that are read again: some are decoded to nothing, or lose a leading space.
_SLACK = 4


@dataclass(slots=True)
class Row:
    """`tokens`, `raw`, `sampled` grow together, `masks` too where there are any.

    `limit` is the most tokens that the completion may have.
    """

    request: Request
    index: int
    limit: int
    tokens: list[int]
    raw: list[float]
    sampled: list[float]
    masks: list[npt.NDArray[np.uint8]]
    uniforms: npt.NDArray[np.float64]
    emit: Emit | None
    finish: Finish | None = None

    @classmethod
    def start(cls, request: Request, index: int, limit: int, emit: Emit | None) -> Row:
        """The row of a request, from where its draft ended."""
        draft, sampling = request.draft, request.sampling
        return cls(
            request,
            index,
            limit,
            draft.token_ids.tolist(),
            draft.raw_logprobs.tolist(),
            draft.sampled_logprobs.tolist(),
            [] if draft.masks is None else list(draft.masks),
            uniforms(sampling.seed, request.index, max(limit, len(draft.token_ids) + 1)),
            emit,
        )

    @property
    def sequence(self) -> list[int]:
        """Prompt and what there is of the completion."""
        return [*self.request.prompt_ids.tolist(), *self.tokens]

    @property
    def started(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Both apart."""
        return tuple(self.request.prompt_ids.tolist()), tuple(self.tokens)

    @property
    def uniform(self) -> float:
        """The number that draws the next token."""
        return float(self.uniforms[len(self.tokens)])

    @property
    def is_short(self) -> bool:
        """Whether an end token may not come yet."""
        return len(self.tokens) < self.request.sampling.min_new_tokens

    def take(
        self, token: int, raw: float, sampled: float, ends: frozenset[int], decode: Callable[[Ids], str]
    ) -> None:
        """Note a drawn token, and whether it ends the completion."""
        self.tokens.append(token)
        self.raw.append(raw)
        self.sampled.append(sampled)
        if token in ends or self._stopped(decode):
            self.finish = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish = "length"
        if self.emit:
            self.emit(self.index, token, raw)

    def draft(self) -> Draft:
        """What there is."""
        return Draft(
            token_ids=np.array(self.tokens, np.int32),
            raw_logprobs=np.array(self.raw, np.float32),
            sampled_logprobs=np.array(self.sampled, np.float32),
            masks=np.stack(self.masks) if self.masks else None,
            finish=self.finish,
        )

    def _stopped(self, decode: Callable[[Ids], str]) -> bool:
        stop = self.request.sampling.stop
        if not stop:
            return False
        # The end first: the whole is decoded only where a stop string may stand.
        window = max(len(text.encode()) for text in stop) + _SLACK
        end = decode(np.array(self.tokens[-window:], np.int32))
        if not any(text in end for text in stop):
            return False
        whole = decode(np.array(self.tokens, np.int32))
        return any(text in whole for text in stop)
