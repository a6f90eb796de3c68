"""Published reward models: scores against the plain model of transformers, steps, cuts, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from services.common.errors import Corrupted, InvalidInput
from services.models.classifiers import Classifier, Readout, load_classifier
from services.models.scorer import ScoreText
from tests.fakes.tiny_models import CHAT_TEMPLATE, tiny_tokenizer, word_tokenizer

ROWS = [
    ScoreText((("user", "hi"),), "hello"),
    ScoreText(
        (("user", "What is the sea?"), ("assistant", "Water."), ("user", "Why?")), "Rain fell for long."
    ),
    ScoreText((("user", "x"),), "y"),
]


def decoder_config(tokenizer: Any, labels: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        num_labels=labels,
    )


def saved(
    folder: Path, kind: type[Any], *, labels: int = 1, chat: bool = True, pad: int | None = None
) -> Any:
    """A random model of this kind on disk, with its tokenizer; the model itself, in eval mode."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer(chat_template=chat)
    if kind is BertForSequenceClassification:
        config: Any = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            num_labels=labels,
        )
    elif kind is GPT2ForSequenceClassification:
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=256,
            initializer_range=0.2,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            num_labels=labels,
        )
    else:
        config = decoder_config(tokenizer, labels)
    if pad is not None:
        config.pad_token_id = pad
    model = kind(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def load(folder: Path, **readout: Any) -> Classifier:
    return load_classifier(
        folder, dtype="float32", device="cpu", threads=1, name="m", readout=Readout(**readout)
    )


def scores(model: Classifier, rows: list[ScoreText]) -> list[float]:
    return [reading.value for reading in model.read([model.encode(row) for row in rows])]


def conversation_ids(row: ScoreText) -> torch.Tensor:
    tokenizer = tiny_tokenizer()
    turns = [{"role": role, "content": text} for role, text in [*row.messages, ("assistant", row.completion)]]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


@pytest.mark.parametrize("label", [0, 2])
def test_a_decoder_with_a_classification_head_gives_its_logit(tmp_path: Path, label: int) -> None:
    """The logit of the chosen label for the whole conversation in the chat template, whatever shares the batch."""
    plain = saved(tmp_path, LlamaForSequenceClassification, labels=3)
    with torch.inference_mode():
        expected = [float(plain(input_ids=conversation_ids(row)).logits[0, label]) for row in ROWS]
    model = load(tmp_path, label=label)
    assert scores(model, ROWS) == pytest.approx(expected, abs=1e-5)
    assert [scores(model, [row])[0] for row in ROWS] == pytest.approx(expected, abs=1e-5)
    assert (model.about().kind, model.about().chat, model.about().max_tokens) == ("model", True, 256)


@pytest.mark.parametrize("kind", [LlamaForSequenceClassification, GPT2ForSequenceClassification])
def test_where_the_end_token_pads_a_decoder_is_read_before_it(tmp_path: Path, kind: type[Any]) -> None:
    """As transformers reads it and TRL trains it: text, messages and ids, alone and beside longer rows."""
    tokenizer = tiny_tokenizer()
    plain = saved(tmp_path, kind, pad=tokenizer.eos_token_id)
    model = load(tmp_path)
    with torch.inference_mode():
        expected = [float(plain(input_ids=conversation_ids(row)).logits[0, 0]) for row in ROWS]
    assert scores(model, ROWS) == pytest.approx(expected, abs=1e-5)
    assert [scores(model, [row])[0] for row in ROWS] == pytest.approx(expected, abs=1e-5)
    rendered = [
        ScoreText((), tokenizer.decode(conversation_ids(row)[0].tolist()), rendered=True) for row in ROWS
    ]
    assert scores(model, rendered) == pytest.approx(expected, abs=1e-5)


def test_a_decoder_without_a_template_reads_one_text(tmp_path: Path) -> None:
    """Prompt and answer are tokenised together: a word that spans both is the word that it is."""
    saved(tmp_path, LlamaForSequenceClassification, chat=False)
    word_tokenizer("ab a b").save_pretrained(tmp_path)
    assert load(tmp_path).encode(ScoreText((("user", "a"),), "b")).ids == (2,)


def test_an_encoder_with_a_template_reads_rendered_text_as_it_stands(tmp_path: Path) -> None:
    """No second template around what has one already."""
    saved(tmp_path, BertForSequenceClassification)
    text = "<|user|>hi<|end|><|assistant|>"
    row = load(tmp_path).encode(ScoreText((("user", text),), "yes", rendered=True))
    tokenizer = tiny_tokenizer()
    first, second = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, "yes"))
    assert list(row.ids) == [*first, *second]


def test_positions_bound_rows_whatever_is_asked_for(tmp_path: Path) -> None:
    """A limit beyond the backbone's table would end in an error in the middle of it."""
    saved(tmp_path, BertForSequenceClassification, chat=False)
    model = load(tmp_path, max_tokens=8192)
    assert model.about().max_tokens == 128
    assert math.isfinite(scores(model, [ScoreText((("user", "q" * 300),), "z" * 300)])[0])


def test_a_label_that_a_scalar_head_has_not_is_refused(tmp_path: Path) -> None:
    """It has one."""
    saved(tmp_path, LlamaForCausalLM)
    file = tmp_path / "model.safetensors"
    save_file(
        {**load_file(file), "v_head.summary.weight": torch.zeros(1, 16)}, file, metadata={"format": "pt"}
    )
    with pytest.raises(InvalidInput, match="label 1 was asked for, the model has 1"):
        load(tmp_path, label=1)


def test_ids_of_a_rollout_score_as_the_conversation(tmp_path: Path) -> None:
    """With a newline after each end token in the template, a completion gets it; ids without a prompt do not."""
    saved(tmp_path, LlamaForSequenceClassification)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n")
    tokenizer.save_pretrained(tmp_path)
    model = load(tmp_path)
    prompt = tokenizer("<|user|>hi<|end|>\n<|assistant|>")["input_ids"]
    completion = tokenizer("hello<|end|>")["input_ids"]
    conversation = model.encode(ScoreText((("user", "hi"),), "hello")).ids
    assert model.encode_ids(prompt, completion).ids == conversation
    assert model.encode_ids(prompt, completion[:-1]).ids == (*prompt, *completion[:-1])
    assert model.encode_ids([], [*prompt, *completion]).ids == (*prompt, *completion) == conversation[:-1]


def test_an_encoder_takes_prompt_and_answer_as_a_pair(tmp_path: Path) -> None:
    """The logit for [CLS] prompt [SEP] answer [SEP] with two token types, as the tokenizer frames a pair."""
    plain = saved(tmp_path, BertForSequenceClassification, chat=False)
    tokenizer = tiny_tokenizer(chat_template=False)
    model = load(tmp_path)
    first, middle, last = model._frame
    expected = []
    for row in ROWS:
        before = tokenizer("\n".join(text for _, text in row.messages), add_special_tokens=False)["input_ids"]
        after = tokenizer(row.completion, add_special_tokens=False)["input_ids"]
        head = [*first, *before, *middle]
        ids = torch.tensor([[*head, *after, *last]])
        types = torch.tensor([[0] * len(head) + [1] * (len(after) + len(last))])
        with torch.inference_mode():
            expected.append(float(plain(input_ids=ids, token_type_ids=types).logits[0, 0]))
    assert scores(model, ROWS) == pytest.approx(expected, abs=1e-5)


def framing(folder: Path, single: str, pair: str, *, begin: str) -> Any:
    """The folder's tokenizer, which puts special tokens around texts from now on."""
    tokenizer = tiny_tokenizer(chat_template=False)
    tokenizer.bos_token = begin
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]", "<|end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair=pair, special_tokens=special
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("single", ["[CLS] $A", "[CLS] $A <|end|>", "$A <|end|>", "$A"])
def test_a_lone_text_is_framed_as_its_tokenizer_does(tmp_path: Path, single: str) -> None:
    """A decoder reads what the tokenizer makes of the text by default, with one begin token if it had one."""
    plain = saved(tmp_path, LlamaForSequenceClassification)
    tokenizer = framing(tmp_path, single, f"{single} $B", begin="[CLS]")
    model = load(tmp_path)
    text = "<|user|>hi<|end|><|assistant|>hello<|end|>"
    row = ScoreText((), text, rendered=True, special_tokens=True)
    ids = tokenizer(text)["input_ids"]
    assert list(model.encode(row).ids) == ids
    if single.startswith("[CLS]"):
        assert list(model.encode(replace(row, completion="[CLS]" + text)).ids) == ids
    assert list(model.encode(replace(row, special_tokens=False)).ids) == model._tokens(text)
    with torch.inference_mode():
        expected = float(plain(input_ids=torch.tensor([ids])).logits[0, 0])
    assert scores(model, [row]) == pytest.approx([expected], abs=1e-5)


def test_an_encoder_reads_a_lone_text_alone(tmp_path: Path) -> None:
    """The logit for [CLS] text [SEP] of one token type, as by the tokenizer's and the model's defaults."""
    plain = saved(tmp_path, BertForSequenceClassification, chat=False)
    tokenizer = framing(tmp_path, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", begin="[CLS]")
    model = load(tmp_path)
    texts = ["A good answer.", "no"]
    with torch.inference_mode():
        expected = [float(plain(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts]
    rows = [ScoreText((), text, rendered=True, special_tokens=True) for text in texts]
    assert scores(model, rows) == pytest.approx(expected, abs=1e-5)
    as_pairs = scores(model, [replace(row, special_tokens=False) for row in rows])
    assert as_pairs != pytest.approx(expected, abs=1e-3)


def test_a_lone_text_that_is_too_long_keeps_its_frame(tmp_path: Path) -> None:
    """The oldest tokens of the text go, never the special ones around it."""
    saved(tmp_path, BertForSequenceClassification, chat=False)
    tokenizer = framing(tmp_path, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", begin="[CLS]")
    row = load(tmp_path, max_tokens=10).encode(
        ScoreText((), "0123456789ab", rendered=True, special_tokens=True)
    )
    assert tokenizer.decode(row.ids) == "[CLS]456789ab[SEP]"
    assert row.cut == 4


def test_a_process_reward_model_reads_a_lone_text_with_its_special_tokens(tmp_path: Path) -> None:
    """The begin token stands before the first step once, and steps end where they did, one further on."""
    saved(tmp_path, LlamaForTokenClassification, labels=2)
    framing(tmp_path, "[CLS] $A", "[CLS] $A $B", begin="[CLS]")
    model = load(tmp_path, step_separator="\n\n")
    row = ScoreText((), "one\n\ntwo", rendered=True)
    without, framed = model.encode(row), model.encode(replace(row, special_tokens=True))
    assert framed.ids == (*model._tokens("[CLS]"), *without.ids)
    assert framed.steps == tuple(end + 1 for end in without.steps)
    assert model.encode(replace(row, completion="[CLS]one\n\ntwo", special_tokens=True)) == framed


def test_a_causal_model_with_a_scalar_head_of_trl(tmp_path: Path) -> None:
    """v_head.summary at the state of the conversation's last token."""
    plain = saved(tmp_path, LlamaForCausalLM)
    file = tmp_path / "model.safetensors"
    head = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    bias = torch.tensor([0.25])
    save_file(
        {**load_file(file), "v_head.summary.weight": head, "v_head.summary.bias": bias},
        file,
        metadata={"format": "pt"},
    )
    with torch.inference_mode():
        states = [plain.model(input_ids=conversation_ids(row)).last_hidden_state[0, -1] for row in ROWS]
    expected = [float(head[0] @ state + bias) for state in states]
    assert scores(load(tmp_path), ROWS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("reduction", "reduce"),
    [
        ("min", min),
        ("last", lambda steps: steps[-1]),
        ("product", math.prod),
        ("mean", lambda s: sum(s) / len(s)),
    ],
)
def test_a_process_reward_model_scores_every_step(tmp_path: Path, reduction: Any, reduce: Any) -> None:
    """P(last label) at each step's separator, and the value as the reduction makes it of them."""
    plain = saved(tmp_path, LlamaForTokenClassification, labels=2)
    tokenizer = tiny_tokenizer()
    model = load(tmp_path, step_reduction=reduction)
    row = ScoreText((("user", "1+1+1?"),), "1+1=2\n\n2+1=3\n\nSo 3.")
    [reading] = model.read([model.encode(row)])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1+1?"}], tokenize=False, add_generation_prompt=True
    )
    parts = [prompt, "1+1=2", "\n\n", "2+1=3", "\n\n", "So 3.", "\n\n"]
    pieces = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    ends = [sum(map(len, pieces[: at + 1])) - 1 for at in (2, 4, 6)]
    with torch.inference_mode():
        logits = plain(input_ids=torch.tensor([[token for piece in pieces for token in piece]])).logits[0]
    expected = torch.softmax(logits[ends], dim=1)[:, 1].tolist()
    assert reading.steps == pytest.approx(expected, abs=1e-5)
    assert reading.value == pytest.approx(reduce(expected), abs=1e-5)
    assert model.about().kind == "process"


def test_rows_are_cut_to_the_limit_from_the_left(tmp_path: Path) -> None:
    """The end of the answer stays; how much was cut is told; a step that was cut off is no step."""
    saved(tmp_path / "a", LlamaForSequenceClassification)
    model = load(tmp_path / "a", max_tokens=20)
    row = model.encode(ScoreText((("user", "q" * 30),), "z" * 30))
    whole = conversation_ids(ScoreText((("user", "q" * 30),), "z" * 30))[0].tolist()
    assert (list(row.ids), row.cut) == (whole[-20:], len(whole) - 20)
    saved(tmp_path / "b", LlamaForTokenClassification, labels=2)
    steps = load(tmp_path / "b", max_tokens=20).encode(ScoreText((("user", "q"),), "a" * 15 + "\n\nb"))
    assert len(steps.steps) == 2
    assert load(tmp_path / "b", max_tokens=8).encode(
        ScoreText((("user", "q"),), "a" * 15 + "\n\n" + "b" * 10)
    ).steps == (7,)


def test_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    """Ids of the model's own tokenizer need no template; ids that it has not are refused."""
    plain = saved(tmp_path, LlamaForSequenceClassification)
    model = load(tmp_path)
    with torch.inference_mode():
        expected = float(plain(input_ids=torch.tensor([[9, 10, 11, 12]])).logits[0, 0])
    assert model.read([model.encode_ids([9, 10], [11, 12])])[0].value == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InvalidInput, match="token id -1"):
        model.encode_ids([-1], [3])


def test_what_gives_no_score_is_refused(tmp_path: Path) -> None:
    """A causal model without a head, a label that is not there, weights that are not finite: one line each."""
    saved(tmp_path / "causal", LlamaForCausalLM)
    with pytest.raises(InvalidInput, match="without a scalar head"):
        load(tmp_path / "causal")
    saved(tmp_path / "labels", LlamaForSequenceClassification, labels=2)
    with pytest.raises(InvalidInput, match="label 2 was asked for, the model has 2"):
        load(tmp_path / "labels", label=2)
    saved(tmp_path / "nan", LlamaForSequenceClassification)
    file = tmp_path / "nan" / "model.safetensors"
    tensors = load_file(file)
    tensors["score.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(Corrupted, match="not finite"):
        load(tmp_path / "nan")
