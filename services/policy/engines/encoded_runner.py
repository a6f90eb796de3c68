"""Passes of an encoder-decoder of the T5 family: the encoder once for each prompt, the decoder a token at a time.

    join    prompt ──encoder──▶ states ──k, v of each layer──▶ `read` cache     start token and what there is ──┐
    step    a token in every row ──▶ [ attend to `written` cache ▸ to `read` cache ▸ mlp ] a layer ──▶ states  ◀─┘

Rows stand at places of their own, so a row's position bias is made from its own length: transformers' forward knows one
for all rows. The first pass is tried against the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from services.common.errors import InvalidInput
from services.models.encoder_decoder import EncoderDecoder, trial
from services.models.packed import same_states
from services.policy.engines.kv_cache import KeyValueCache
from services.policy.engines.runners import Started

# (layer, queries [rows, heads, time, width], keys and values of the same tokens [rows, 2 * heads, time, width]) -> what
# is attended to, [rows, heads, time, width]. And the same of the prompt, whose keys and values are known.
_Attend = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
_Read = Callable[[int, torch.Tensor], torch.Tensor]


class EncodedRunner:
    """See runners.Runner. Raises InvalidInput for a model that computes something else than is computed here."""

    longest = 0

    def __init__(self, model: Any) -> None:
        self._head = model.get_output_embeddings()
        self._stacks = EncoderDecoder(model)
        decoder = self._stacks.decoder
        self._embed, self._norm = decoder.embed_tokens, decoder.final_layer_norm
        self._blocks = [block.layer for block in decoder.block]
        self._biased = self._blocks[0][0].SelfAttention
        self._heads, self._width = int(self._biased.n_heads), int(self._biased.key_value_proj_dim)
        shape = {
            "layers": len(self._blocks),
            "heads": self._heads,
            "width": self._width,
            "dtype": self._embed.weight.dtype,
            "device": self._embed.weight.device,
        }
        self._written, self._read = KeyValueCache(**shape), KeyValueCache(**shape)
        # States of the prompts of this call: those who join later find their prompt read.
        self._encoded: dict[tuple[int, ...], torch.Tensor] = {}
        self._try(model)

    def refresh(self) -> None:
        """Prompts are read again: the model's own parameters compute."""
        self._encoded = {}

    def reserve(self, rows: int, sizes: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self._encoded = {}
        self._read.reserve(rows, max(prompt for prompt, _ in sizes))
        # The start token stands before the completion.
        self._written.reserve(rows, 1 + max(completion for _, completion in sizes))

    def drop(self, place: int) -> None:
        """See Runner."""
        self._read.drop(place)
        self._written.drop(place)

    def forget(self) -> None:
        """See Runner."""
        self._encoded = {}
        self._read.forget()
        self._written.forget()

    def join(self, started: Sequence[Started], copies: Sequence[int]) -> torch.Tensor:
        """See Runner."""
        prompts = self._states_of([tuple(prompt) for prompt, _ in started])
        begun = [torch.tensor([self._stacks.start, *tokens]) for _, tokens in started]
        lengths = [len(tokens) for tokens in begun]
        written = self._written.add(lengths, copies)
        read = self._read.add([len(prompt) for prompt in prompts], copies)
        ids = pad_sequence(begun, batch_first=True).to(self._embed.weight.device)
        encoded, unread = _padded(prompts)
        causal = self._bias(torch.arange(ids.shape[1], device=ids.device), ids.shape[1])
        causal = causal.masked_fill(torch.ones_like(causal, dtype=torch.bool).triu(1), -torch.inf)

        def attend(layer: int, queries: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
            for row, length in enumerate(lengths):
                self._written.fill(layer, written[row], pairs[row, :, :length].transpose(0, 1))
            keys, values = pairs.chunk(2, 1)
            return scaled_dot_product_attention(queries, keys, values, attn_mask=causal, scale=1.0)

        def look(layer: int, queries: torch.Tensor) -> torch.Tensor:
            pairs = self._pairs(self._blocks[layer][1].EncDecAttention, encoded)
            for row, prompt in enumerate(prompts):
                self._read.fill(layer, read[row], pairs[row, :, : len(prompt)].transpose(0, 1))
            keys, values = pairs.chunk(2, 1)
            return scaled_dot_product_attention(queries, keys, values, attn_mask=unread, scale=1.0)

        states = self._decoded(ids, attend, look)
        rows = [row for row, count in enumerate(copies) for _ in range(count)]
        return states[rows, [lengths[row] - 1 for row in rows]]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Runner."""
        positions = self._written.extend()
        self._read.hold()
        bias = self._bias(positions, self._written.columns).transpose(0, 2)  # [rows, heads, 1, columns]

        def attend(layer: int, queries: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
            keys, values, mask = self._written.write(layer, pairs[:, :, 0])
            return scaled_dot_product_attention(queries, keys, values, attn_mask=bias + mask, scale=1.0)

        def look(layer: int, queries: torch.Tensor) -> torch.Tensor:
            keys, values, mask = self._read.read(layer)
            return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0)

        return self._decoded(tokens[:, None], attend, look)[:, 0]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """See Runner."""
        logits: torch.Tensor = self._head(states)
        return logits

    def _decoded(self, ids: torch.Tensor, attend: _Attend, look: _Read) -> torch.Tensor:
        """Last states [rows, time, width], ready for the head, of token ids [rows, time]."""
        x = self._embed(ids)
        for at, (own, other, feed) in enumerate(self._blocks):
            y, attention = own.layer_norm(x), own.SelfAttention
            x = x + _out(attention, attend(at, self._split(attention.q(y)), self._pairs(attention, y)))
            attention = other.EncDecAttention
            x = x + _out(attention, look(at, self._split(attention.q(other.layer_norm(x)))))
            x = feed(x)
        return self._norm(x) * self._stacks.scale

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, time, heads * width] to [rows, heads, time, width]."""
        return x.view(*x.shape[:2], self._heads, self._width).transpose(1, 2)

    def _pairs(self, attention: Any, x: torch.Tensor) -> torch.Tensor:
        """Keys' heads, then the values', [rows, 2 * heads, time, width]."""
        return torch.cat([self._split(attention.k(x)), self._split(attention.v(x))], 1)

    def _bias(self, positions: torch.Tensor, columns: int) -> torch.Tensor:
        """What is added to scores of a query at each of these positions, [1, heads, positions, columns]."""
        attention = self._biased
        away = torch.arange(columns, device=positions.device) - positions[:, None]
        buckets = attention._relative_position_bucket(
            away,
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        bias: torch.Tensor = attention.relative_attention_bias(buckets)
        return bias.permute(2, 0, 1)[None]

    def _states_of(self, prompts: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """The encoder's states of each prompt, [time, width]; those that are not known are read together."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._encoded]
        if new:
            stacks = self._stacks
            ids = [torch.tensor(prompt, device=stacks.device) for prompt in new]
            mask = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
            states = stacks.encode(self._embed(pad_sequence(ids, batch_first=True)), mask)
            self._encoded |= {prompt: states[at, : len(prompt)] for at, prompt in enumerate(new)}
        return [self._encoded[prompt] for prompt in prompts]

    @torch.inference_mode()
    def _try(self, model: Any) -> None:
        """One row, all at once and a token at a time, against the model's own pass."""
        ids = torch.arange(5, device=self._stacks.device)
        expected, _ = trial(model, ids[None])
        self.reserve(1, [(5, 5)])
        states = [self.join([(ids.tolist(), ids[:2].tolist())], [1])]
        states += [self.step(token[None]) for token in ids[2:]]
        self.refresh()
        if not same_states(expected[0, 2:], self.logits(torch.cat(states))):
            raise InvalidInput(
                f"{type(model).__name__} computes more than its parts show, which is not supported"
            )


def _out(attention: Any, attended: torch.Tensor) -> torch.Tensor:
    """[rows, heads, time, width] through the output's product, [rows, time, width of the model]."""
    product: torch.Tensor = attention.o(attended.transpose(1, 2).flatten(2))
    return product


def _padded(prompts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """States [prompts, time, width], and what to add to scores, [prompts, 1, 1, time]: -inf behind each one's end."""
    states = pad_sequence(list(prompts), batch_first=True)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=states.device)
    unread = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
    mask = torch.zeros(unread.shape, dtype=states.dtype, device=states.device).masked_fill(unread, -torch.inf)
    return states, mask[:, None, None]
