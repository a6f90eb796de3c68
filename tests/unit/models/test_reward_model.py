"""Reward models: what is scored, how it is cut, what comes back from disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from services.common.errors import Corrupted, InvalidInput, NotFound
from services.models.reward_model import (
    HEAD_FILE,
    SETTINGS_FILE,
    RewardModel,
    ScoreText,
    load_reward_model,
    new_reward_model,
)
from tests.fakes.tiny_models import (
    CHAT_TEMPLATE,
    make_tiny_causal,
    make_tiny_encoder,
    make_tiny_reward_model,
    make_tiny_t5,
    tiny_tokenizer,
)

POOLINGS = ["last", "mean"]
ROWS = [
    ScoreText((("user", question),), answer)
    for question, answer in [
        ("hi", "hello"),
        ("why?", "because of it"),
        ("a longer question", "no"),
        ("x", ""),
    ]
]


def load(folder: Path) -> RewardModel:
    return load_reward_model(str(folder), dtype="float32", threads=1, device="cpu")


def encoded(model: RewardModel, row: ScoreText) -> tuple[list[int], int]:
    found = model.encode(row)
    return list(found.ids), found.start


def text_of(model: RewardModel, row: ScoreText) -> tuple[str, str]:
    """What stands before and from the completion's start on, special tokens included."""
    ids, start = encoded(model, row)
    return str(model.tokenizer.decode(ids[:start])), str(model.tokenizer.decode(ids[start:]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_saved_and_loaded_it_scores_the_same(tmp_path: Path, pooling: str) -> None:
    """Scores, settings and digest survive the disk exactly; another seed scores otherwise."""
    model = load(make_tiny_reward_model(tmp_path / "one", pooling=pooling))
    model.normalised([[row] for row in ROWS])
    (tmp_path / "two").mkdir()
    model.save(tmp_path / "two")
    again = load(tmp_path / "two")
    assert again.score(ROWS) == model.score(ROWS)
    assert again.settings == model.settings
    assert again.facts().model_digest == model.facts().model_digest
    other = load(make_tiny_reward_model(tmp_path / "other", pooling=pooling, seed=1))
    assert other.score(ROWS) != model.score(ROWS)
    assert other.facts().model_digest != model.facts().model_digest


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_score_does_not_depend_on_its_batch(tmp_path: Path, pooling: str) -> None:
    """Alone or padded beside longer ones, under any token budget."""
    model = load(make_tiny_reward_model(tmp_path / "m", pooling=pooling))
    together = model.score(ROWS, token_budget=4096)
    np.testing.assert_allclose([model.score([row])[0] for row in ROWS], together, atol=1e-5)
    np.testing.assert_allclose(model.score(ROWS, token_budget=1), together, atol=1e-5)
    assert len(set(together)) == len(ROWS)


def test_the_last_state_of_a_causal_model_decides(tmp_path: Path) -> None:
    """Head times the state of the end token after prompt and answer, by the plain model."""
    model = load(make_tiny_reward_model(tmp_path / "m", pooling="last"))
    before, answer = text_of(model, ROWS[0])
    assert before == "<|user|>hi<|end|><|assistant|>"
    assert answer == "hello<|end|>"
    ids = torch.tensor([model.tokenizer(before + answer)["input_ids"]])
    with torch.inference_mode():
        state = model.backbone(input_ids=ids).last_hidden_state[0, -1]
        expected = float(model.head.weight[0] @ state + model.head.bias)
    assert model.score([ROWS[0]])[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("template", "begins"), [("[CLS]" + CHAT_TEMPLATE, True), (CHAT_TEMPLATE, False), (None, False)]
)
def test_a_lone_text_gets_the_begin_token_that_training_texts_had(
    tmp_path: Path, template: str | None, begins: bool
) -> None:
    """Where the chat template writes it, once; a model that was trained without reads the text as it stands."""
    model = load(make_tiny_reward_model(tmp_path / "m", pooling="last"))
    model.tokenizer.add_special_tokens({"bos_token": "[CLS]"})
    model.tokenizer.chat_template = template
    text = "<|user|>hi<|end|><|assistant|>hello<|end|>"
    row = ScoreText((), text, rendered=True, special_tokens=True)
    assert text_of(model, row)[1] == ("[CLS]" if begins else "") + text
    assert text_of(model, replace(row, completion="[CLS]" + text))[1] == "[CLS]" + text
    assert text_of(model, replace(row, special_tokens=False))[1] == text
    if begins:
        trained = ScoreText((("user", "hi"),), "hello")
        assert model.score([row]) == pytest.approx(model.score([trained]), abs=1e-6)


NEWLINE_TEMPLATE = CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n")


def newline_model(folder: Path) -> RewardModel:
    """A new one of a base whose template has a newline after each end token, as ChatML has."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = NEWLINE_TEMPLATE
    base = make_tiny_causal(folder / "base", tokenizer=tokenizer)
    return new_reward_model(str(base), dtype="float32", threads=1)


def test_a_causal_model_is_read_at_the_last_token_of_its_template(tmp_path: Path) -> None:
    """The newline after the end token, be the row messages, a text or ids, with the newline or without it."""
    model = newline_model(tmp_path)
    text = "<|user|>hi<|end|>\n<|assistant|>hello<|end|>"
    ids = model.tokenizer(text)["input_ids"]
    whole = tuple(model.tokenizer(text + "\n")["input_ids"])
    rows = [ROWS[0], *(ScoreText((), text + after, rendered=True) for after in ("", "\n"))]
    found = [*map(model.encode, rows), model.encode_ids([], ids), model.encode_ids(ids[:9], whole[9:])]
    assert [one.ids for one in found] == [whole] * 5


def test_what_did_not_end_is_read_as_it_stands(tmp_path: Path) -> None:
    """A text or ids without the end token, a completion of no token at all: nothing is put after them."""
    model = newline_model(tmp_path)
    ids = tuple(model.tokenizer("hello")["input_ids"])
    assert model.encode(ScoreText((), "hello", rendered=True)).ids == ids
    assert model.encode_ids([], ids).ids == ids
    assert model.encode_ids(ids, []).ids == ids


def test_a_model_is_read_as_it_was_trained(tmp_path: Path) -> None:
    """What follows the end token is stored; a folder from before it was is read at the end token."""
    model = newline_model(tmp_path)
    (tmp_path / "new").mkdir()
    model.save(tmp_path / "new")
    again = load(tmp_path / "new")
    assert again.settings == model.settings
    assert again.encode(ROWS[0]) == model.encode(ROWS[0])
    settings = json.loads((tmp_path / "new" / SETTINGS_FILE).read_text())
    del settings["closing"]
    (tmp_path / "new" / SETTINGS_FILE).write_text(json.dumps(settings))
    old = load(tmp_path / "new")
    assert old.encode(ROWS[0]).ids == model.encode(ROWS[0]).ids[:-1]
    assert old.facts().model_digest != model.facts().model_digest


def test_the_mean_over_the_answer_of_an_encoder_decides(tmp_path: Path) -> None:
    """The mean of the answer's states (its closing mark included), which have seen the question."""
    model = load(make_tiny_reward_model(tmp_path / "m", pooling="mean"))
    assert text_of(model, ROWS[0]) == ("[CLS]hi[SEP]", "hello[SEP]")
    ids, start = encoded(model, ROWS[0])
    kinds = torch.tensor([[0] * start + [1] * (len(ids) - start)])
    with torch.inference_mode():
        states = model.backbone(input_ids=torch.tensor([ids]), token_type_ids=kinds).last_hidden_state[0]
        expected = float(model.head.weight[0] @ states[start:].mean(0) + model.head.bias)
    assert model.score([ROWS[0]])[0] == pytest.approx(expected, abs=1e-5)


def long_row(prompt: int, answer: int) -> ScoreText:
    letters = "abcdefghijklmnopqrstuvwxyz" * 9
    return ScoreText((("user", letters[:prompt]),), letters[:answer].upper())


def test_a_causal_model_loses_the_oldest_tokens(tmp_path: Path) -> None:
    """Cut to 96: the end of the answer and its end token always stay."""
    model = load(make_tiny_reward_model(tmp_path / "m", pooling="last", max_tokens=96))
    row = long_row(120, 20)
    before, answer = text_of(model, row)
    assert answer == row.completion + "<|end|>"
    assert before.endswith("<|end|><|assistant|>")
    assert not before.startswith("<|user|>")
    ids, start = encoded(model, row)
    assert (len(ids), start) == (96, 75)
    ids, start = encoded(model, long_row(20, 200))
    assert (len(ids), start) == (96, 0)
    assert model.tokenizer.decode(ids) == long_row(20, 200).completion[-95:] + "<|end|>"


def test_an_encoder_loses_the_oldest_tokens_and_keeps_its_marks(tmp_path: Path) -> None:
    """Cut to 96: [CLS] and both [SEP] stay, then the answer's end, then as much of the question's end as fits."""
    model = load(make_tiny_reward_model(tmp_path / "m", pooling="mean", max_tokens=96))
    row = long_row(120, 20)
    before, answer = text_of(model, row)
    assert (before, answer) == (f"[CLS]{row.messages[0][1][-73:]}[SEP]", f"{row.completion}[SEP]")
    row = long_row(20, 200)
    assert text_of(model, row) == ("[CLS][SEP]", f"{row.completion[-93:]}[SEP]")
    assert len(model.encode(row).ids) == 96


def test_gain_and_bias_bring_mean_0_and_deviation_1(tmp_path: Path) -> None:
    """After `normalised` the same answers score mean 0, deviation 1, in the same order; twice is as once."""
    model = load(make_tiny_reward_model(tmp_path / "m"))
    before = model.score(ROWS)
    model.normalised([[row] for row in ROWS])
    after = model.score(ROWS)
    assert np.mean(after) == pytest.approx(0.0, abs=1e-5)
    assert np.std(after) == pytest.approx(1.0, abs=1e-5)
    assert np.argsort(after).tolist() == np.argsort(before).tolist()
    model.normalised([[row] for row in ROWS])
    np.testing.assert_allclose(model.score(ROWS), after, atol=1e-5)


@pytest.mark.parametrize(("make", "pooling"), [(make_tiny_causal, "last"), (make_tiny_encoder, "mean")])
def test_a_new_head_is_small_and_of_its_seed(tmp_path: Path, make: Any, pooling: str) -> None:
    """Normal with deviation 1/sqrt(d + 1), bias 0; the same for the same seed; no dropout; bounded by the context."""
    base = str(make(tmp_path / "base", width=64))
    model = new_reward_model(base, dtype="float32", threads=1, seed=3)
    assert model.settings.pooling == pooling
    assert model.settings.max_tokens == 128
    # 64 numbers: their deviation lies within 4 standard errors, 1/sqrt(128) each, of 1/sqrt(65).
    assert float(model.head.weight.detach().std()) * 65**0.5 == pytest.approx(1.0, abs=4 / 128**0.5)
    assert float(model.head.bias.detach()) == 0.0
    again = new_reward_model(base, dtype="float32", threads=1, seed=3)
    assert torch.equal(model.head.weight, again.head.weight)
    assert not torch.equal(
        model.head.weight, new_reward_model(base, dtype="float32", threads=1, seed=4).head.weight
    )
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_encoders_whose_positions_begin_after_padding_keep_within_them(tmp_path: Path, kind: str) -> None:
    """Of 40 positions two are padding's: longer rows are cut to 38, also in a folder that says 40."""
    tokenizer = tiny_tokenizer(chat_template=False)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
    )
    base, folder = tmp_path / "base", tmp_path / "reward"
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(base)
    tokenizer.save_pretrained(base)
    folder.mkdir()
    made = new_reward_model(str(base), dtype="float32", threads=1, max_tokens=1024)
    assert (made.settings.pooling, made.settings.max_tokens) == ("mean", 38)
    made.settings = replace(made.settings, max_tokens=40)
    made.save(folder)
    row = ScoreText((("user", "why? " * 20),), "because " * 10)
    assert load(folder).score([row]) == pytest.approx(
        new_reward_model(str(base), dtype="float32", threads=1).score([row]), abs=1e-6
    )


def test_a_model_with_encoder_and_decoder_is_refused(tmp_path: Path) -> None:
    """In words, and not by its first pass."""
    base = make_tiny_t5(tmp_path / "base")
    with pytest.raises(InvalidInput, match="has an encoder and a decoder"):
        new_reward_model(str(base), dtype="float32", threads=1)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    """A NaN anywhere, backbone or head, is refused at loading."""
    for at, file in enumerate((HEAD_FILE, "model.safetensors")):
        folder = make_tiny_reward_model(tmp_path / str(at))
        tensors = load_file(folder / file)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        save_file(tensors, folder / file, metadata={"format": "pt"})
        with pytest.raises(Corrupted, match="the reward model has weights that are not finite"):
            load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"pooling": "other"}', "pooling 'other' is neither mean nor last"),
        ('{"pooling": "last", "gain": NaN}', "gain nan and bias 0.0 are not both finite"),
        ('{"pooling": "last", "max_tokens": 2}', "max_tokens 2 leaves no room"),
        ('{"pooling": "last", "unknown": 2}', "unknown"),
        ('{"pooling": "last", "closing": 7}', "cannot be read"),
        ('{"pooling": "last", "closing": ["a"]}', r"closing \['a'\] is no list of token ids"),
        ('{"pooling": "last", "closing": [100000]}', r"closing \[100000\] is not in the vocabulary of"),
        ('{"pooling": "last", "max_tokens": 8, "closing": [1, 2, 3]}', "closing has 3 ids, max_tokens is 8"),
        ("[1]", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_senseless_settings(tmp_path: Path, settings: str, message: str) -> None:
    """Each is one line."""
    folder = make_tiny_reward_model(tmp_path / "m")
    (folder / SETTINGS_FILE).write_text(settings)
    with pytest.raises(InvalidInput, match=message):
        load(folder)


def test_damaged_folders(tmp_path: Path) -> None:
    """No reward model at all, a broken head, one of another width, a backbone with a hole: each one line."""
    with pytest.raises(
        NotFound, match=r"not a reward model folder \(reward\.json and reward_head\.safetensors"
    ):
        load(make_tiny_causal(tmp_path / "plain"))
    folder = make_tiny_reward_model(tmp_path / "m")
    head = (folder / HEAD_FILE).read_bytes()
    (folder / HEAD_FILE).write_bytes(b"junk")
    with pytest.raises(InvalidInput, match="settings or head cannot be read"):
        load(folder)
    save_file({"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}, folder / HEAD_FILE)
    with pytest.raises(InvalidInput, match="does not fit a backbone of width 16"):
        load(folder)
    (folder / HEAD_FILE).write_bytes(head)
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"is not whole: norm\.weight is missing"):
        load(folder)


def test_settings_are_plain_json(tmp_path: Path) -> None:
    """Others can read what belongs to the scores."""
    folder = make_tiny_reward_model(tmp_path / "m", max_tokens=64)
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    assert settings == {"pooling": "last", "max_tokens": 64, "gain": 1.0, "bias": 0.0, "closing": []}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_padding_it_scores_the_same(tmp_path: Path, pooling: str) -> None:
    """Rows side by side in one sequence score as each alone: no row sees its neighbour."""
    folder = make_tiny_reward_model(tmp_path / "m", pooling=pooling)
    expected = [load(folder).score([row])[0] for row in ROWS]
    packed = load(folder)
    packed.pack()
    assert packed.packed
    np.testing.assert_allclose(packed.score(ROWS), expected, atol=1e-5)


def test_ids_of_its_own_tokenizer_score_as_their_text(tmp_path: Path) -> None:
    """Prompt and completion as ids give the score of the text that they are of; an unknown id is refused."""
    model = load(make_tiny_reward_model(tmp_path / "m"))
    ids, start = encoded(model, ROWS[0])
    [reading] = model.read([model.encode_ids(ids[:start], ids[start:])])
    assert reading.value == pytest.approx(model.score([ROWS[0]])[0], abs=1e-6)
    for wrong in (-1, 10_000):
        with pytest.raises(InvalidInput, match=f"token id {wrong} is not in the vocabulary"):
            model.encode_ids(ids[:start], [wrong])
