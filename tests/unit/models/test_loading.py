"""Loading: what is not there, broken or unlike what is needed is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from services.common.errors import InvalidInput, Mismatch, NotFound
from services.models.loading import (
    check_head,
    encode_prompt,
    load_causal,
    resolve,
    serving_state,
    switch_off_dropout,
    trainable_layers,
)
from services.models.logprobs import completion_logprobs
from tests.fakes.tiny_models import (
    make_tiny_causal,
    make_tiny_encoder,
    make_tiny_gpt2,
    make_tiny_t5,
    tiny_tokenizer,
)
from tests.fakes.tiny_runs import loaded_from, model_spec, random_pairs


def test_a_whole_model_is_loaded_in_eval_mode_with_its_facts(tmp_path: Path) -> None:
    """Its name, context, vocabulary, dtype and architecture are the folder's; nothing is in training mode."""
    loaded = loaded_from(make_tiny_causal(tmp_path / "tiny", context_length=96))
    facts = loaded.facts
    assert (facts.name, facts.architecture, facts.dtype) == ("tiny", "causal", "float32")
    assert (facts.context_length, facts.vocabulary_size) == (96, 263)
    assert not any(module.training for module in loaded.model.modules())
    half = loaded_from(tmp_path / "tiny", "bfloat16").facts
    assert half.dtype == "bfloat16"
    assert half.model_digest != facts.model_digest
    assert half.tokenizer_fingerprint == facts.tokenizer_fingerprint


def test_layers_are_counted_by_the_configuration_alone(tmp_path: Path) -> None:
    """Of a model without its weights; a form that no learner splits is told by name."""
    causal, two_stacks = make_tiny_causal(tmp_path / "causal"), make_tiny_t5(tmp_path / "t5")
    for folder, layers in ((causal, 2), (two_stacks, 5)):
        (folder / "model.safetensors").unlink()
        assert trainable_layers(str(folder)) == layers
    with pytest.raises(InvalidInput, match="T5's or the Llama family's form, not GPT2LMHeadModel"):
        trainable_layers(str(make_tiny_gpt2(tmp_path / "gpt2")))


@pytest.mark.parametrize("path", ["./nothing", "/nothing/at/all", "~/nothing-here", "a/b/c", "some.gguf"])
def test_paths_that_are_not_there(path: str) -> None:
    """What looks like a path and is none is not sought on a hub."""
    with pytest.raises(NotFound, match=f"model {path}: no such file or folder"):
        resolve(path)


def test_what_is_no_model(tmp_path: Path) -> None:
    """A folder without config.json, a file that is no GGUF by its name: said so."""
    with pytest.raises(NotFound, match=r"no config\.json in this folder, so it is no Hugging Face model"):
        resolve(str(tmp_path))
    other = tmp_path / "model.bin"
    other.write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"a model is a folder, a \.gguf file, package:<name> or a hub id"):
        resolve(str(other))


def test_an_unknown_hub_id() -> None:
    """Where no hub can be reached an unknown id is one line, at once."""
    with pytest.raises(NotFound, match=r"model nobody/none could not be loaded: .+") as caught:
        load_causal(model_spec(Path("nobody/none")))
    assert "\n" not in str(caught.value)


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncated, InvalidInput, r"not readable as safetensors \(Error while deserializing header"),
        (
            without_a_tensor,
            InvalidInput,
            r"no whole causal model: model\.layers\.1\.mlp\.up_proj\.weight is missing",
        ),
        (of_another_width, InvalidInput, "could not be read"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            NotFound,
            r"no file named model\.safetensors",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), InvalidInput, "not readable as JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), InvalidInput, "Unrecognized model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), InvalidInput, "tokenizer"),
    ],
    ids=[
        "truncated",
        "tensor missing",
        "other shapes",
        "no weights",
        "broken config",
        "empty config",
        "no tokenizer",
    ],
)
def test_damaged_folders(
    tmp_path: Path, damage: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    """Each kind of damage is one line that names the folder; random numbers never stand in for weights."""
    folder = make_tiny_causal(tmp_path / "tiny")
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        loaded_from(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encoder_is_no_policy(tmp_path: Path) -> None:
    """transformers would put a random head on a BERT and go on."""
    with pytest.raises(InvalidInput, match="no whole causal model"):
        loaded_from(make_tiny_encoder(tmp_path / "encoder"))


def test_a_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    """Ids without an embedding are refused at the start, not in the first batch that has one."""
    folder = make_tiny_causal(tmp_path / "tiny")
    larger = make_tiny_causal(tmp_path / "larger", extra_tokens=("<a>", "<b>"))
    shutil.copy(larger / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(Mismatch, match="the tokenizer has 265 tokens, the model embeds only 263"):
        loaded_from(folder)


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_other_backbones_are_scored_right(tmp_path: Path) -> None:
    """A GPT-2, whose backbone has another name, gives its own log-probs."""
    config = GPT2Config(
        vocab_size=270, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    loaded = loaded_from(saved(tmp_path / "gpt2", GPT2LMHeadModel(config)))
    for prompt, completion in random_pairs(3):
        [found] = completion_logprobs(loaded.model, [(prompt, completion)], temperature=1.0, token_budget=99)
        ids = torch.tensor(np.concatenate([prompt, completion])[None].astype(np.int64))
        with torch.inference_mode():
            logs = loaded.model(ids).logits[0].log_softmax(-1)
        rows = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        expected = logs[rows, ids[0, len(prompt) :]].numpy()
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


def test_heads_that_do_more_are_refused(tmp_path: Path) -> None:
    """A soft cap on the logits would make every log-prob wrong; so would a bias on the head."""
    config = Gemma2Config(
        vocab_size=270,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.05,
    )
    with pytest.raises(
        InvalidInput, match="Gemma2ForCausalLM: its logits are not the output embedding times"
    ):
        loaded_from(saved(tmp_path / "gemma", Gemma2ForCausalLM(config)))
    model = loaded_from(make_tiny_causal(tmp_path / "tiny")).model
    check_head(model)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 263))
    with pytest.raises(InvalidInput, match="LlamaForCausalLM: its logits are not"):
        check_head(model)


def test_served_weights_stand_once(tmp_path: Path) -> None:
    """The tied head is not sent twice, and together the names are all the numbers there are."""
    model = loaded_from(make_tiny_causal(tmp_path / "tiny")).model
    state = serving_state(model)
    assert "lm_head.weight" not in state
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in model.parameters())
    assert not any(value.requires_grad for value in state.values())


def test_dropout_is_off_even_in_training_mode() -> None:
    """Two passes in training mode give the same numbers."""
    config = GPT2Config(
        vocab_size=20, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5
    )
    model = GPT2LMHeadModel(config).train()
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    switch_off_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_prompts_are_encoded_through_the_template() -> None:
    """Messages are laid out and opened for the answer; what cannot be laid out is said, not guessed."""
    tokenizer = tiny_tokenizer()
    ids = encode_prompt(tokenizer, messages=[{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids) == "<|user|>hi<|end|><|assistant|>"
    assert tokenizer.decode(encode_prompt(tokenizer, text="hi")) == "hi"
    with pytest.raises(Mismatch, match="the model's tokenizer has no chat template"):
        encode_prompt(tiny_tokenizer(chat_template=False), messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(InvalidInput, match="the prompt is empty"):
        encode_prompt(tokenizer, text="")
    strict = tiny_tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidInput, match="the chat template refuses these messages: roles must alternate"):
        encode_prompt(strict, messages=[{"role": "user", "content": "hi"}])
