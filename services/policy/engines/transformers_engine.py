"""The default engine: any causal model of transformers, in process, batched, with its own decoding loop.

Prompts are padded on the left; a row leaves the batch when it is finished. Log-probs come twice: raw
(temperature 1, nothing masked) and as sampled.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from services.common.errors import InvalidInput, Mismatch
from services.models.loading import LoadedModel, serving_state
from services.policy.engines.base import Capability, Draft, Emit, Finish, Ids, Request, Sampling
from services.policy.engines.kv_cache import InPlaceCache
from services.policy.engines.sampling import draw, filter_logits, uniforms


@dataclass(slots=True)
class _Row:
    """A completion in the making. `tokens`, `raw`, `sampled` grow together."""

    request: Request
    tokens: list[int]
    raw: list[float]
    sampled: list[float]
    uniforms: Any
    index: int
    emit: Emit | None
    finish: Finish | None = None

    def draft(self) -> Draft:
        return Draft(
            token_ids=np.array(self.tokens, np.int32),
            raw_logprobs=np.array(self.raw, np.float32),
            sampled_logprobs=np.array(self.sampled, np.float32),
            finish=self.finish,
        )


class TransformersEngine:
    """Batched sampling with a causal model of transformers."""

    name = "transformers"
    capabilities: frozenset[Capability] = frozenset(
        ("raw_logprobs", "weight_updates", "stop_strings", "resume")
    )

    def __init__(self, loaded: LoadedModel, *, max_rows: int = 64) -> None:
        if loaded.facts.architecture != "causal":
            raise InvalidInput(f"the transformers engine runs causal models, not {loaded.facts.architecture}")
        self.facts = loaded.facts
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._max_rows = max_rows
        self._end_ids = _end_ids(loaded)

    def generate(
        self, requests: Sequence[Request], stopping: threading.Event, emit: Emit | None = None
    ) -> list[Draft]:
        """A draft for each request, in order; rows of like length share a batch."""
        for request in requests:
            self._check(request)
        drafts: list[Draft] = [request.draft for request in requests]
        todo = [index for index, request in enumerate(requests) if request.draft.finish is None]
        todo.sort(key=lambda index: (_sampler_key(requests[index].sampling), _length(requests[index])))
        while todo and not stopping.is_set():
            batch = self._next_batch(todo, requests)
            rows = [_row(requests[index], index, emit) for index in batch]
            self._decode(rows, stopping)
            for index, row in zip(batch, rows, strict=True):
                drafts[index] = row.draft()
        return drafts

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy values in place; names, shapes and dtypes are checked before the first byte is written."""
        own = self.weights()
        for name, tensor in tensors.items():
            if name not in own:
                raise Mismatch(f"weights name a tensor this model does not have: {name}")
            if own[name].shape != tensor.shape or own[name].dtype != tensor.dtype:
                raise Mismatch(
                    f"{name}: weights bring {tensor.dtype} {list(tensor.shape)}, the model has "
                    f"{own[name].dtype} {list(own[name].shape)}"
                )
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Names and tensors that are served now."""
        return serving_state(self._model)

    def decode(self, token_ids: Ids) -> str:
        """Text of a completion, special tokens left out."""
        return str(self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=True))

    def _check(self, request: Request) -> None:
        prompt = request.prompt_ids
        if len(prompt) == 0:
            raise InvalidInput("the prompt has no tokens", {"prompt.token_ids": "at least one token"})
        if int(prompt.min()) < 0 or int(prompt.max()) >= self.facts.vocabulary_size:
            raise InvalidInput(
                f"a token id lies outside the vocabulary of {self.facts.vocabulary_size}",
                {"prompt.token_ids": f"0 … {self.facts.vocabulary_size - 1}"},
            )
        room = self.facts.context_length - len(prompt)
        if room < 1:
            raise InvalidInput(
                f"the prompt has {len(prompt)} tokens; the context of {self.facts.context_length} leaves no room",
                {"prompt.token_ids": f"at most {self.facts.context_length - 1} tokens"},
            )

    def _next_batch(self, todo: list[int], requests: Sequence[Request]) -> list[int]:
        """Up to max_rows requests with the same sampler, taken from the front of `todo`."""
        key = _sampler_key(requests[todo[0]].sampling)
        batch: list[int] = []
        while todo and len(batch) < self._max_rows and _sampler_key(requests[todo[0]].sampling) == key:
            batch.append(todo.pop(0))
        return batch

    @torch.inference_mode()
    def _decode(self, rows: list[_Row], stopping: threading.Event) -> None:
        sequences = [[*row.request.prompt_ids.tolist(), *row.tokens] for row in rows]
        width = max(map(len, sequences))
        budget = max(self._limit(row) - len(row.tokens) for row in rows)
        device = self._model.device
        cache = InPlaceCache(self._model.config.num_hidden_layers, width + budget)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width + budget), dtype=torch.long)
        for at, sequence in enumerate(sequences):
            ids[at, width - len(sequence) :] = torch.tensor(sequence)
            mask[at, width - len(sequence) : width] = 1
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask[:, :width].cumsum(-1) - 1).clamp_(min=0)
        live = rows
        while live and not stopping.is_set():
            logits = self._step(ids, mask[:, :width], positions, cache)
            tokens = self._draw(live, logits)
            kept = [at for at, row in enumerate(live) if row.finish is None]
            if len(kept) < len(live):
                live = [live[at] for at in kept]
                keep = torch.tensor(kept, dtype=torch.long, device=device)
                tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
                cache.keep_rows(keep)
            if live:
                mask[:, width] = 1
                width += 1
                ids, positions = tokens[:, None], positions[:, -1:] + 1

    def _step(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> Any:
        """Logits after the last token of each row, [rows, vocabulary] float32."""
        hidden = self._model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return self._model.get_output_embeddings()(hidden).float()

    def _draw(self, live: list[_Row], logits: torch.Tensor) -> torch.Tensor:
        """Draw one token for each live row and note it with both log-probs, [rows] int64."""
        sampling = live[0].request.sampling
        sampled = raw = torch.log_softmax(logits, dim=-1)
        early = [len(row.tokens) < row.request.sampling.min_new_tokens for row in live]
        if any(early):
            logits = self._forbid_end(early, logits)
        if any(early) or not _is_plain(sampling):
            scaled = logits / sampling.temperature if sampling.temperature > 0 else logits
            sampled = torch.log_softmax(filter_logits(scaled, sampling.top_k, sampling.top_p), dim=-1)
        if sampling.temperature == 0:
            tokens = sampled.argmax(-1)
        else:
            numbers = [row.uniforms[len(row.tokens)] for row in live]
            tokens = draw(sampled.exp(), torch.tensor(numbers, dtype=torch.float64, device=logits.device))
        at = tokens[:, None]
        for row, token, one, two in zip(
            live,
            tokens.tolist(),
            raw.gather(-1, at)[:, 0].tolist(),
            sampled.gather(-1, at)[:, 0].tolist(),
            strict=True,
        ):
            row.tokens.append(token)
            row.raw.append(one)
            row.sampled.append(two)
            row.finish = self._finish(row, token)
            if row.emit:
                row.emit(row.index, token, one)
        return tokens

    def _forbid_end(self, early: list[bool], logits: torch.Tensor) -> torch.Tensor:
        """End tokens masked in the rows that are still below their minimum length."""
        rows = torch.tensor(early, device=logits.device)[:, None]
        ends = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        ends[list(self._end_ids)] = True
        return logits.masked_fill(rows & ends, -torch.inf)

    def _finish(self, row: _Row, token: int) -> Finish | None:
        if token in self._end_ids:
            return "stop"
        stop = row.request.sampling.stop
        if stop and any(text in self.decode(np.array(row.tokens, np.int32)) for text in stop):
            return "stop"
        return "length" if len(row.tokens) >= self._limit(row) else None

    def _limit(self, row: _Row) -> int:
        room = self.facts.context_length - len(row.request.prompt_ids)
        return min(row.request.sampling.max_new_tokens, room)


def _row(request: Request, index: int, emit: Emit | None) -> _Row:
    draft, sampling = request.draft, request.sampling
    return _Row(
        request,
        draft.token_ids.tolist(),
        draft.raw_logprobs.tolist(),
        draft.sampled_logprobs.tolist(),
        uniforms(sampling.seed, request.index, sampling.max_new_tokens),
        index,
        emit,
    )


def _length(request: Request) -> int:
    return len(request.prompt_ids) + len(request.draft.token_ids)


def _sampler_key(sampling: Sampling) -> tuple[float, float, int]:
    return (sampling.temperature, sampling.top_p, sampling.top_k)


def _is_plain(sampling: Sampling) -> bool:
    return sampling.temperature == 1.0 and sampling.top_p >= 1.0 and sampling.top_k == 0


def _end_ids(loaded: LoadedModel) -> frozenset[int]:
    """End tokens by the generation config and the tokenizer."""
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(end) for end in (*listed, loaded.tokenizer.eos_token_id) if end is not None)
