"""Encoder-decoder models: loaded as such, scored as transformers scores them, laid out as causal ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration

from services.common.errors import InvalidInput
from services.models.encoder_decoder import EncoderDecoder
from services.models.loading import load_causal, serving_state
from services.models.logprobs import completion_logprobs
from services.models.trunk import halves_of
from tests.fakes.tiny_models import make_tiny_t5, tiny_tokenizer
from tests.fakes.tiny_runs import loaded_from, model_spec, random_pairs

PAIRS = [*random_pairs(6, seed=1), (random_pairs(1, seed=1)[0][0], np.arange(3, dtype=np.int32))]


@pytest.fixture(scope="module", params=[False, True], ids=["t5", "t5-1.1"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("models") / "tiny", gated=request.param)


def own_logits(model: Any, prompt: Any, completion: Any) -> torch.Tensor:
    """By transformers' own forward, which shifts the labels right behind its start token: [completion, vocabulary]."""
    with torch.no_grad():
        ids, labels = (torch.tensor(one, dtype=torch.long)[None] for one in (prompt, completion))
        logits: torch.Tensor = model(input_ids=ids, labels=labels).logits[0]
    return logits


@pytest.mark.parametrize("budget", [16, 4096])
def test_log_probs_are_transformers_own(folder: Path, budget: int) -> None:
    """Row by row to 1e-5, for ragged rows of any micro-batch, two of which share a prompt; at a temperature."""
    model = loaded_from(folder).model
    found = completion_logprobs(model, PAIRS, temperature=0.7, token_budget=budget)
    for (prompt, completion), values in zip(PAIRS, found, strict=True):
        logs = (own_logits(model, prompt, completion) / 0.7).log_softmax(-1)
        expected = logs.gather(1, torch.tensor(completion, dtype=torch.long)[:, None])[:, 0]
        np.testing.assert_allclose(values, expected.numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [0, 2, 3, 4])
def test_halves_give_the_whole_and_train_what_is_above(folder: Path, layers: int) -> None:
    """States after both halves times the head are the model's logits, also past the end; gradients above alone.

    Three layers of five are the encoder: from there on it runs in the lower half.
    """
    model = loaded_from(folder).model
    split = halves_of(model, layers)
    lower = split.lower_rows(PAIRS)
    assert not any(states.requires_grad for states in lower)
    hidden = split.upper_rows(lower, PAIRS)
    for states, (prompt, completion) in zip(hidden, PAIRS, strict=True):
        more = [*completion, 1]
        logits = (
            states[len(prompt) - 1 : len(prompt) - 1 + len(more)] @ model.get_output_embeddings().weight.T
        )
        torch.testing.assert_close(logits, own_logits(model, prompt, more), atol=1e-5, rtol=1e-5)
    hidden.square().sum().backward()
    blocks = [f"encoder.block.{at}." for at in range(3)] + [f"decoder.block.{at}." for at in range(2)]
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("shared", *blocks[:layers])) or (
            layers >= 3 and name == "encoder.final_layer_norm.weight"
        )
        assert parameter.requires_grad is not frozen, name
        assert (parameter.grad is None) is frozen, name


def test_a_prompt_is_encoded_once_for_its_completions(folder: Path) -> None:
    """Of four rows with two prompts the encoder sees two."""
    stacks = EncoderDecoder(loaded_from(folder).model)
    seen: list[int] = []
    stacks.encoder.register_forward_pre_hook(
        lambda _, __, options: seen.append(len(options["inputs_embeds"])), with_kwargs=True
    )
    (one, first), (other, second) = PAIRS[:2]
    with torch.inference_mode():
        stacks.states([(one, first), (other, second), (one, second), (one, first[:1])])
    assert seen == [2]


def test_a_tied_tensor_is_served_once_and_a_head_of_its_own_too(tmp_path: Path) -> None:
    """Embeddings of both stacks and the head are one tensor; a checkpoint with another head keeps it."""
    folder = make_tiny_t5(tmp_path / "tiny", gated=True)
    names = set(serving_state(loaded_from(folder).model))
    assert "shared.weight" in names
    assert not {name for name in names if "embed_tokens" in name or "lm_head" in name}
    weights = load_file(folder / "model.safetensors")
    save_file(
        {**weights, "lm_head.weight": -weights["shared.weight"]},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert set(serving_state(loaded_from(folder).model)) == {*names, "lm_head.weight"}


def test_its_facts(folder: Path) -> None:
    """Relative positions end nowhere: a context of 0 is none."""
    facts = loaded_from(folder).facts
    assert (facts.architecture, facts.context_length) == ("encoder_decoder", 0)
    assert facts.vocabulary_size == len(tiny_tokenizer())


def test_no_dropout_in_training_mode_either(folder: Path) -> None:
    """T5's attention keeps its rate apart from the modules named Dropout."""
    model = loaded_from(folder).model
    prompt, completion = PAIRS[0]
    expected = own_logits(model, prompt, completion)
    assert torch.equal(own_logits(model.train(), prompt, completion), expected)


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    """In one line each: too many frozen layers, no start token, another family, an encoder where there may be none."""
    with pytest.raises(
        InvalidInput, match="frozen_layers = 5, but the model has 3 layers in the encoder and 2"
    ):
        halves_of(loaded_from(folder).model, 5)
    with pytest.raises(InvalidInput, match="names no decoder_start_token_id"):
        loaded_from(make_tiny_t5(tmp_path / "startless", decoder_start_token_id=None))
    with pytest.raises(InvalidInput, match="could not be read"):
        load_causal(model_spec(folder))
    sizes = {
        "d_model": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
    }
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=len(tiny_tokenizer()), **sizes, **heads))
    bart.save_pretrained(tmp_path / "bart")
    tiny_tokenizer().save_pretrained(tmp_path / "bart")
    with pytest.raises(InvalidInput, match=r"BartForConditionalGeneration: .* only the T5 family"):
        loaded_from(tmp_path / "bart")
