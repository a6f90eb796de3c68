"""The default engine: models of transformers, in process, batched continuously, with its own sampler.

    requests ──▶ waiting ──join (one pass over prompts, shared ones once)──▶ rows ──step──▶ rows ──▶ drafts
                    ▲                                                          │ a row that ends leaves at once,
                    └──────────────── places that got free ◀──────────────────┘ and another takes its place

Log-probs come twice: raw (temperature 1, nothing masked) and as sampled.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import torch

from services.common.errors import Corrupted, InvalidInput
from services.models.action_masks import packed
from services.models.loading import LoadedModel, serving_state
from services.models.packing import micro_batches
from services.policy.engines.adapted import AdaptedWeights
from services.policy.engines.base import Capability, Draft, Emit, Ids, Request, Sampling, check_request
from services.policy.engines.decoding import Decoding
from services.policy.engines.rows import Row
from services.policy.engines.runners import Started, runner_for
from services.policy.engines.sampling import Drawn, LogitsProcessor, draw_filtered, draw_plain, joined

# Padded tokens of prompts in one pass; more save nothing, and activations grow with them.
_JOIN_TOKENS = 2048


class TransformersEngine:
    """Sampling with a language model of transformers.

    processors: applied in order to every row's logits, after those of `decoding`.
    """

    name = "transformers"
    capabilities: frozenset[Capability] = frozenset(
        (
            "token_ids",
            "raw_logprobs",
            "sampled_logprobs",
            "weight_updates",
            "stop_strings",
            "resume",
            "seeds",
            "logits_processors",
            "adapters",
        )
    )

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_rows: int = 64,
        processors: Sequence[LogitsProcessor] = (),
        decoding: Decoding | None = None,
    ) -> None:
        self.facts = loaded.facts
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._max_rows = max_rows
        self._decoding = decoding or Decoding(runner_for(loaded.model))
        self._weights = AdaptedWeights(serving_state(loaded.model) | dict(self._decoding.weights))
        self._processors = (*self._decoding.processors, *processors)
        self._ends = _end_ids(loaded)
        self._barred = torch.tensor(sorted(self._ends), dtype=torch.long, device=loaded.model.device)
        self._runner = self._decoding.runner

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], stopping: threading.Event, emit: Emit | None = None
    ) -> list[Draft]:
        """A draft for each request, in order; a row that ends makes room for the next at once."""
        for request in requests:
            check_request(request, self.facts)
            self._check_end_can_wait(request)
        waiting = deque(
            Row.start(request, index, self._limit(request), emit)
            for index, request in enumerate(requests)
            if request.draft.finish is None
        )
        drafts: list[Draft] = [request.draft for request in requests]
        if waiting and not stopping.is_set():
            self._runner.refresh()
            sizes = [(len(row.request.prompt_ids), row.limit) for row in waiting]
            self._runner.reserve(min(self._max_rows, len(waiting)), sizes)
            rows = list(waiting)
            self._decode(waiting, stopping)
            for row in rows:
                drafts[row.index] = row.draft()
        return drafts

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy values in place, or merge them where they are an adapter's; checked before the first byte is written."""
        self._weights.load(tensors)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Names and tensors that are served now: of an adapted model its base and the factors."""
        return self._weights.named()

    def close(self) -> None:
        """Nothing is held beside memory."""

    def decode(self, token_ids: Ids) -> str:
        """Text of a completion, special tokens left out."""
        return str(self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=True))

    def _decode(self, waiting: deque[Row], stopping: threading.Event) -> None:
        """Until every row has ended or `stopping` is set. `live[i]` is the row at the cache's place i."""
        live: list[Row] = []
        last = torch.empty(0, dtype=torch.long, device=self._model.device)
        try:
            while (live or waiting) and not stopping.is_set():
                free = self._max_rows - len(live)
                # A pass for one prompt costs about as much as a step for all: some join together.
                if waiting and (not live or free >= max(1, self._max_rows // 8)):
                    joined = self._join(live, [waiting.popleft() for _ in range(min(free, len(waiting)))])
                    tokens = torch.cat([last, joined])
                else:
                    tokens = self._draw(live, self._step(last))
                live, last = self._leave(live, tokens)
        except Corrupted:
            self._runner.forget()
            raise

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states after one token more in every row, [rows, width]."""
        return self._runner.step(tokens)

    def _join(self, live: list[Row], new: list[Row]) -> torch.Tensor:
        """New rows behind those that are there: appended to `live`, with the tokens they drew, [rows] int64."""
        alike: dict[Started, list[int]] = {}
        for at, row in enumerate(new):
            alike.setdefault(row.started, []).append(at)
        distinct = list(alike)
        tokens = []
        for batch in micro_batches([len(prompt) + len(begun) for prompt, begun in distinct], _JOIN_TOKENS):
            members = [alike[distinct[at]] for at in batch]
            states = self._runner.join([distinct[at] for at in batch], [len(each) for each in members])
            rows = [new[at] for each in members for at in each]
            tokens.append(self._draw(rows, states))
            live.extend(rows)
        return torch.cat(tokens)

    def _leave(self, live: list[Row], tokens: torch.Tensor) -> tuple[list[Row], torch.Tensor]:
        """The rows that have not ended, in the cache's order, and their last tokens."""
        places = list(range(len(live)))
        for place in reversed(range(len(live))):
            if live[place].finish is not None:
                self._runner.drop(place)
                places[place] = places[-1]
                places.pop()
        if len(places) == len(live):
            return live, tokens
        return [live[place] for place in places], tokens[places]

    def _draw(self, rows: list[Row], states: torch.Tensor) -> torch.Tensor:
        """Draw one token for each row and note it with both log-probs, [rows] int64."""
        logits = self._runner.logits(states)
        drawn = self._draw_alike(rows, logits, states)
        if drawn.masks is not None:
            for row, mask in zip(rows, drawn.masks.cpu().numpy(), strict=True):
                row.masks.append(mask)
        values = zip(rows, drawn.tokens.tolist(), drawn.raw.tolist(), drawn.sampled.tolist(), strict=True)
        for row, token, raw, sampled in values:
            row.take(token, raw, sampled, self._ends, self._spelled)
        return drawn.tokens

    def _spelled(self, token_ids: Ids) -> str:
        """With its special tokens, one of which may be what a caller stops at."""
        return str(self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=False))

    def _draw_alike(self, rows: list[Row], logits: torch.Tensor, states: torch.Tensor) -> Drawn:
        """Rows of the same sampler are drawn together; apart from them those whose end may not come yet."""
        keys = [(_sampler_key(row.request.sampling), row.is_short) for row in rows]
        if len(set(keys)) == 1:
            return self._draw_group(rows, logits, states)
        order = sorted(range(len(rows)), key=keys.__getitem__)
        parts = [list(group) for _, group in groupby(order, key=keys.__getitem__)]
        drawn = [self._draw_group([rows[each] for each in at], logits[at], states[at]) for at in parts]
        back = torch.tensor(order, device=logits.device).argsort()
        return joined(drawn).taken(back)

    def _draw_group(self, rows: list[Row], logits: torch.Tensor, states: torch.Tensor) -> Drawn:
        """Rows that differ in nothing but their numbers."""
        sampling = rows[0].request.sampling
        uniform = torch.tensor([row.uniform for row in rows], dtype=torch.float64, device=logits.device)
        barred = self._barred if rows[0].is_short else None
        plain = sampling.temperature > 0 and sampling.top_p >= 1.0 and not sampling.top_k
        if plain and not self._processors:
            return draw_plain(logits, sampling.temperature, uniform, barred)
        raw = changed = logits.float()
        for processor in self._processors:
            changed = processor(changed, states, [row.sequence for row in rows])
        if barred is not None:
            changed = changed.index_fill(-1, barred, -torch.inf)
        drawn = draw_filtered(
            changed,
            raw,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            uniform=uniform,
        )
        return replace(drawn, masks=packed(changed > -torch.inf)) if self._decoding.masks else drawn

    def _check_end_can_wait(self, request: Request) -> None:
        """Raises InvalidInput where a mask may leave nothing but the end tokens, which may not come yet."""
        least = self._decoding.least_tokens
        if least and request.sampling.min_new_tokens and least <= len(self._ends):
            raise InvalidInput(
                f"min_new_tokens with a mask of at least {least} tokens, of which {len(self._ends)} may end the text: "
                f"decoding.mask.min_tokens of {len(self._ends) + 1} would always leave another",
                {"sampling.min_new_tokens": "0"},
            )

    def _limit(self, request: Request) -> int:
        most, longest = request.sampling.max_new_tokens, self.facts.context_length
        if not longest:  # of relative positions: nothing ends
            return most
        return min(most, max(1, longest - len(request.prompt_ids)))


def _sampler_key(sampling: Sampling) -> tuple[float, float, int]:
    return (sampling.temperature, sampling.top_p, sampling.top_k)


def _end_ids(loaded: LoadedModel) -> frozenset[int]:
    """End tokens by the generation config and the tokenizer."""
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(end) for end in (*listed, loaded.tokenizer.eos_token_id) if end is not None)
