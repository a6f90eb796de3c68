"""Training passes without padding against padded ones, on small random encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, RobertaConfig, RobertaModel

from services.models.dropout import dropping
from services.models.packed import packed_states
from services.models.unpadded import leave_out_padding, unpadded_attention

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 66, "pad_token_id": 1}
ROWS = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]]


def made(kind: type[Any], config: Any) -> Any:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return kind(config).eval()


@pytest.fixture
def encoder() -> Any:
    return made(BertModel, BertConfig(**ENCODER))


def gradients(model: Any, states: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the same sum of the states, by every weight that has a part in it."""
    model.zero_grad()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_states_and_gradients_are_those_of_each_row_alone(encoder: Any) -> None:
    """Every state and every weight's gradient, in float32 to 1e-5."""
    alone = torch.cat([encoder(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ROWS])
    expected = gradients(encoder, alone)
    assert leave_out_padding(encoder)
    together = packed_states(encoder, ROWS)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    found = gradients(encoder, together)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "make",
    [
        lambda: made(LlamaModel, LlamaConfig(**SIZES, intermediate_size=32)),
        lambda: made(RobertaModel, RobertaConfig(**ENCODER)),
    ],
    ids=["causal", "positions that begin at 2"],
)
def test_models_that_it_does_not_suit_stay_as_they_are(make: Any) -> None:
    """It is refused, and the model answers as before."""
    model = make()
    ids = torch.tensor([ROWS[0]])
    with torch.inference_mode():
        before = model(input_ids=ids).last_hidden_state
        assert not leave_out_padding(model)
        torch.testing.assert_close(model(input_ids=ids).last_hidden_state, before, atol=0, rtol=0)


def test_attention_drops_probabilities_and_keeps_their_mean(encoder: Any) -> None:
    """Over many draws attention under dropout comes to attention without it; one draw does not."""
    module = encoder.encoder.layer[0].attention.self
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn((3, 1, 4, 9, 4), generator=generator)

    def attended(dropout: float) -> torch.Tensor:
        return unpadded_attention(module, query, key, value, None, dropout=dropout, packed_lengths=[6, 3])[0]

    torch.manual_seed(1)
    draws = torch.stack([attended(0.3) for _ in range(4000)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - attended(0.0)).abs() <= 5 * error + 1e-6).all()
    assert not torch.allclose(draws[0], attended(0.0), atol=1e-2)


def test_dropout_of_a_pass_is_on_in_training_alone(encoder: Any) -> None:
    """Two passes under dropout differ, by torch's seed; without it they are the same to the last bit."""
    assert leave_out_padding(encoder)
    plain = packed_states(encoder, ROWS)
    with dropping(encoder, encoder, 0.2):
        torch.manual_seed(3)
        first, second = packed_states(encoder, ROWS), packed_states(encoder, ROWS)
        torch.manual_seed(3)
        assert torch.equal(packed_states(encoder, ROWS), first)
    assert not torch.equal(first, second)
    assert torch.equal(packed_states(encoder, ROWS), plain)


@pytest.mark.parametrize("causal, key_heads, mask", [(True, 4, None), (False, 2, None), (False, 4, 0)])
def test_what_it_does_not_compute_is_refused(
    encoder: Any, causal: bool, key_heads: int, mask: int | None
) -> None:
    """Causal attention, shared key heads and masks raise ValueError instead of being computed as something else."""
    module = encoder.encoder.layer[0].attention.self
    module.is_causal = causal
    query, key = torch.zeros(1, 4, 9, 4), torch.zeros(1, key_heads, 9, 4)
    with pytest.raises(ValueError, match=r"only encoders|no mask"):
        unpadded_attention(module, query, key, key, None if mask is None else torch.zeros(1))
