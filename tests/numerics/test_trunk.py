"""Splitting a model between frozen and trained layers changes no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaModel

from services.common.errors import InvalidInput
from services.models.trunk import freeze
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return loaded_from(make_tiny_causal(tmp_path / "tiny", layers=3)).model


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_upper_after_lower_is_the_whole_model(model: Any, layers: int) -> None:
    """upper(lower(ids)) equals the backbone's last hidden states."""
    ids = torch.randint(263, (3, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model.model(input_ids=ids, use_cache=False).last_hidden_state
        split = freeze(model, layers)
        torch.testing.assert_close(split.upper(split.lower(ids), [11, 11, 11]), whole, atol=1e-5, rtol=1e-5)
        # The model itself still is whole.
        assert torch.equal(model.model(input_ids=ids, use_cache=False).last_hidden_state, whole)
    assert len(model.model.layers) == 3
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_layers_of_several_kinds_stay_what_they_are(layers: int) -> None:
    """Gemma 3: each half's layers keep their own windows and rotations, past the window too."""
    config = Gemma3TextConfig(
        vocab_size=263,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        initializer_range=0.2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        gemma = Gemma3ForCausalLM(config).eval()
    ids = torch.randint(263, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = gemma.model(input_ids=ids, use_cache=False).last_hidden_state
        split = freeze(gemma, layers)
        found = split.upper(split.lower(ids), [11, 11])
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    assert len(gemma.config.layer_types) == 4


def test_a_backbone_that_is_more_than_its_layers_is_refused(model: Any) -> None:
    """What is done to the embeddings would be done twice, before the frozen layers and before the trained ones."""

    class Scaled(LlamaModel):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **more: Any) -> Any:
            embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            return super().forward(inputs_embeds=4 * embedded, **more)

    model.model.__class__ = Scaled
    with pytest.raises(InvalidInput, match="Scaled does more than its layers"):
        freeze(model, 1)


@pytest.mark.parametrize("layers", [0, 2])
def test_frozen_parameters_get_no_gradient_and_the_others_do(model: Any, layers: int) -> None:
    """Embeddings, the tied head and the lowest layers stay; every parameter above learns."""
    split = freeze(model, layers)
    ids = torch.randint(263, (2, 7), generator=torch.Generator().manual_seed(1))
    split.upper(split.lower(ids), [7, 7]).square().sum().backward()
    for name, parameter in model.named_parameters():
        number = int(name.split(".")[2]) if ".layers." in name else None
        frozen = "embed_tokens" in name or "lm_head" in name or (number is not None and number < layers)
        assert parameter.requires_grad is not frozen, name
        assert (parameter.grad is None) is frozen, name


def test_trained_embeddings_learn_from_below_and_from_the_head(model: Any) -> None:
    """Every parameter gets the gradient that transformers' own pass gives it; frozen layers above them are refused."""
    ids = torch.randint(263, (2, 7), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids).logits.square().sum().backward()
    expected = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()
    split = freeze(model, 0, embeddings=True)
    states = split.upper(split.lower(ids), [7, 7])
    (states @ model.get_output_embeddings().weight.T).square().sum().backward()
    for name, parameter in model.named_parameters():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5 * largest, rtol=0, msg=name)
    with pytest.raises(InvalidInput, match="train_embeddings needs frozen_layers = 0, not 1"):
        freeze(model, 1, embeddings=True)


def test_halves_share_the_models_weights(model: Any) -> None:
    """An update of the model is an update of the upper half: nothing is copied."""
    split = freeze(model, 1)
    ids = torch.ones((1, 4), dtype=torch.long)
    with torch.no_grad():
        before = split.upper(split.lower(ids), [4])
        model.model.norm.weight.mul_(2)
        torch.testing.assert_close(split.upper(split.lower(ids), [4]), 2 * before)


def test_too_many_layers_and_another_form_are_refused(model: Any) -> None:
    """As many frozen layers as there are leaves nothing to train; GPT-2's form is not guessed at."""
    with pytest.raises(InvalidInput, match="frozen_layers = 3, but the model has 3 layers"):
        freeze(model, 3)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(InvalidInput, match="Llama family's form, not GPT2LMHeadModel"):
        freeze(other, 0)
