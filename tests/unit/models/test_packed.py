"""Padding-free passes against padded ones, on small random models of several families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    RobertaConfig,
    RobertaModel,
)

from services.models.packed import attend_rows, enable_packing, packed_states

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 64}
ENCODER = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 66, "pad_token_id": 1}
ROWS = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]]


def made(kind: type[Any], config: Any) -> Any:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return kind(config).eval()


FAMILIES = {
    "llama": lambda: made(LlamaModel, LlamaConfig(**DECODER)),
    "qwen2": lambda: made(Qwen2Model, Qwen2Config(**DECODER, layer_types=["full_attention"] * 2)),
    "bert": lambda: made(BertModel, BertConfig(**ENCODER)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_states_are_those_of_each_row_alone(family: str) -> None:
    """Every state of every row equals the one of that row run alone, in float32 to 1e-5."""
    model = FAMILIES[family]()
    with torch.inference_mode():
        alone = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
        assert enable_packing(model)
        together = packed_states(model, ROWS)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: made(MistralModel, MistralConfig(**DECODER, sliding_window=4)),
        lambda: made(RobertaModel, RobertaConfig(**ENCODER)),
    ],
    ids=["sliding window", "positions that begin at 2"],
)
def test_models_that_packing_does_not_suit_stay_as_they_are(make: Any) -> None:
    """Where packing would change the states, it is refused, and the model answers as before."""
    model = make()
    ids = torch.tensor([ROWS[0]])
    with torch.inference_mode():
        before = model(input_ids=ids).last_hidden_state
        assert not enable_packing(model)
        torch.testing.assert_close(model(input_ids=ids).last_hidden_state, before, atol=0, rtol=0)


def test_a_family_packs_only_if_it_stays_the_same() -> None:
    """GPT-2, with positions learned rather than rotated: packed or refused, its states are the same."""
    model = made(GPT2Model, GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=64))
    with torch.inference_mode():
        alone = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
        if enable_packing(model):
            torch.testing.assert_close(packed_states(model, ROWS), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_packed_states_are_as_near_the_truth_as_padded_ones(family: str) -> None:
    """Against float32 the packed states err no more than 1.5 times what the model's own pass in bfloat16 errs."""
    model = FAMILIES[family]()
    with torch.inference_mode():
        truth = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
        model.to(torch.bfloat16)
        own = torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
        assert enable_packing(model)
        packed = packed_states(model, ROWS)
    assert (packed.float() - truth).abs().mean() <= 1.5 * (own.float() - truth).abs().mean()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_packed_attention_is_attention(causal: bool, key_heads: int) -> None:
    """Rows of several lengths, shared key heads: what float32 gives, to bfloat16's rounding."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 1, 9]

    def made(heads: int) -> torch.Tensor:
        return torch.randn(sum(lengths), heads, 8, generator=generator).bfloat16()

    query, key, value = made(4), made(key_heads), made(key_heads)
    exact = attend_rows(query.float(), key.float(), value.float(), lengths, causal=causal, scale=0.3)
    found = attend_rows(query, key, value, lengths, causal=causal, scale=0.3)
    torch.testing.assert_close(found.float(), exact, atol=2e-2, rtol=2e-2)
