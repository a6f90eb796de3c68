"""Supervised fine-tuning: only answers are learned, packed as padded, context distilled, adapters merged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.common.comparisons import read
from services.common.errors import ConfigError, InvalidInput
from services.common.spec.service import ModelSpec
from services.learner.jobs.demonstrations import Demonstration, read_demonstrations
from services.learner.jobs.distillation import under_context
from services.learner.jobs.lora import merged, with_adapters
from services.learner.jobs.sft import Row, SftTraining, Trainee, encode, make_optimiser, split, train
from services.models.loading import LoadedModel, load_causal
from services.models.trunk import layers_of
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_gpt2

OPTIONS = SftTraining(learning_rate=1e-2, batch_rows=4, max_tokens=64, held_out_share=0.2)


def demonstration(prompt: str, answer: str) -> Demonstration:
    return Demonstration(messages=(("user", prompt),), answer=answer, group=prompt)


DATA = [demonstration(f"say {at}", "aaaa bbbb") for at in range(10)]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    folder = make_tiny_causal(tmp_path / "model")
    return load_causal(ModelSpec(path=str(folder), dtype="float32", threads=1, device="cpu"))


def test_a_row_is_prompt_answer_and_end_and_only_the_rest_is_learned(loaded: LoadedModel) -> None:
    """The template stands around the prompt; targets are the answer's bytes and the end token."""
    row, cut = encode(loaded.tokenizer, demonstration("hi", "yes"), 64)
    assert loaded.tokenizer.decode(row.ids) == "<|user|>hi<|end|><|assistant|>yes<|end|>"
    assert (row.targets, cut) == (4, False)
    long, cut = encode(loaded.tokenizer, demonstration("a" * 100, "yes"), 20)
    assert (len(long.ids), long.targets, cut) == (20, 4, True)
    endless, cut = encode(loaded.tokenizer, demonstration("hi", "b" * 100), 20)
    assert (len(endless.ids), endless.start, cut) == (20, 1, True)


@pytest.mark.parametrize("packed", [True, False])
def test_logprobs_are_the_models_own(loaded: LoadedModel, packed: bool) -> None:
    """Of each answer's tokens, packed or padded, as the model gives them row by row."""
    rows = [Row((8, 9, 10, 11), 2), Row((20, 21), 1), Row((30, 31, 32, 33, 34), 3)]
    expected = []
    with torch.inference_mode():
        for row in rows:
            logs = torch.log_softmax(loaded.model(input_ids=torch.tensor([row.ids])).logits[0], -1)
            expected += [logs[at - 1, row.ids[at]] for at in range(row.start, len(row.ids))]
        trainee = Trainee(loaded.model, packed=packed)
        assert trainee.packed == packed
        found = trainee.logprobs(rows)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_it_learns_what_it_is_shown(loaded: LoadedModel) -> None:
    """The loss on held-out prompts with the same answer falls, and no prompt is on both sides."""
    fit, held = split(DATA, 0.2, 1)
    assert {one.group for one in fit}.isdisjoint(one.group for one in held)
    report = train(Trainee(loaded.model), loaded.tokenizer, DATA, replace(OPTIONS, epochs=5))
    assert (report.train_rows, report.held_out_rows, report.steps) == (8, 2, 10)
    assert report.loss_after < report.loss_before / 2


def test_any_micro_batches_give_the_same_step(tmp_path: Path) -> None:
    """The mean runs over the batch's tokens, however it is cut, with activations kept or made anew."""
    folder = str(make_tiny_causal(tmp_path / "model"))
    found = []
    for budget, anew in ((4096, False), (1, False), (4096, True)):
        one = load_causal(ModelSpec(path=folder, dtype="float32", threads=1, device="cpu"))
        options = replace(OPTIONS, micro_batch_tokens=budget, gradient_checkpointing=anew)
        found.append(train(Trainee(one.model), one.tokenizer, DATA, options).loss_after)
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


# peft asks transformers by a name that the newest deprecates.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("make", [make_tiny_causal, make_tiny_gpt2])
def test_adapters_alone_are_trained_and_merge_into_the_model(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Under LoRA the base stays as it is while training; merged, the plain model gives what the adapted one gave, also
    where weights are stored the other way round."""
    pytest.importorskip("peft")
    folder = str(make(tmp_path / "model"))
    loaded = load_causal(ModelSpec(path=folder, dtype="float32", threads=1, device="cpu"))
    before = {name: value.clone() for name, value in loaded.model.named_parameters()}
    adapted = with_adapters(loaded.model, rank=4, alpha=8, seed=1)
    report = train(Trainee(loaded.model), loaded.tokenizer, DATA, replace(OPTIONS, epochs=3))
    assert report.loss_after < report.loss_before
    base = {name.replace(".base_layer", ""): value for name, value in loaded.model.named_parameters()}
    assert all(torch.equal(base[name], value) for name, value in before.items())
    plain = merged(adapted)
    assert {name for name, _ in plain.named_parameters()} == set(before)
    rows = [encode(loaded.tokenizer, one, 64)[0] for one in split(DATA, 0.2, 1)[1]]
    assert Trainee(plain).loss(rows, 4096) == pytest.approx(report.loss_after, rel=1e-4)


# As above.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_adapters_on_some_layers_alone(loaded: LoadedModel) -> None:
    """On those that are named; a name that no layer has is refused in one line."""
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=r"^--lora-target no_proj: "):
        with_adapters(loaded.model, rank=4, alpha=8, targets=["no_proj"], seed=1)
    for target in ("lm_head", "embed_tokens"):
        other = copy.deepcopy(loaded.model)
        with pytest.raises(
            ConfigError, match=f"^--lora-target {target}: embeddings and the head get no adapter"
        ):
            with_adapters(other, rank=4, alpha=8, targets=[target], seed=1)
    adapted = with_adapters(loaded.model, rank=4, alpha=8, targets=["q_proj", "v_proj"], seed=1)
    layers = {name.split(".")[-1] for name, layer in adapted.named_modules() if hasattr(layer, "lora_A")}
    assert layers == {"q_proj", "v_proj"}


def test_the_context_is_read_by_the_teacher_alone(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is generated from begins with the context; what comes out are prompts without it and their answers."""
    asked = []
    generate = loaded.model.generate

    def spy(**given: torch.Tensor) -> torch.Tensor:
        asked.extend(loaded.tokenizer.batch_decode(given["input_ids"]))
        made: torch.Tensor = generate(**given)
        return made

    monkeypatch.setattr(loaded.model, "generate", spy)
    prompts = [demonstration("hi", ""), demonstration("longer than that", "")]
    again = [
        under_context(loaded.model, loaded.tokenizer, prompts, "Be kind.", seed=1, max_new_tokens=8)
        for _ in range(2)
    ]
    assert again[0] == again[1]
    assert [one.messages for one in again[0]] == [one.messages for one in prompts]
    assert all(one.answer for one in again[0])
    assert "<|system|>Be kind.<|end|><|user|>hi<|end|><|assistant|>" in asked[0]
    asked.clear()
    long = replace(demonstration("a " * 600, ""), place="data.jsonl:3")
    with pytest.raises(
        InvalidInput, match=r"^data\.jsonl:3: prompt: a prompt has \d+ tokens, which leaves no room"
    ):
        under_context(loaded.model, loaded.tokenizer, [*prompts, long], "Be kind.", seed=1, max_new_tokens=8)
    assert not asked


def test_demonstrations_are_read_in_both_schemas(tmp_path: Path) -> None:
    """Prompt and completion as text or messages, or one list of messages; a mistake names line and field."""
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "b", "tree": 7}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    one, two = read_demonstrations(path)
    assert (one.messages, one.answer) == ((("user", "a"),), "b")
    assert (two.messages, two.answer, two.group) == (one.messages, "b", one.group)
    for row, says in (
        ('{"prompt": "a", "completion": 3}', "completion: expected text or a list of messages, got a number"),
        ('{"prompt": "a"}', "completion: expected text or a list of messages, got null"),
        (
            '{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}',
            "completion: expected an answer",
        ),
        ('{"messages": [{"role": "assistant", "content": "b"}]}', "messages: expected something before"),
    ):
        path.write_text(row + "\n")
        with pytest.raises(InvalidInput, match=f"data.jsonl:1: {says}"):
            read_demonstrations(path)


def test_dialogues_in_text_are_read_as_comparisons_read_them(tmp_path: Path) -> None:
    """HH's form becomes messages and an answer without the blank between; a byte order mark is no text."""
    path = tmp_path / "data.jsonl"
    asked = "\\n\\nHuman: a\\n\\nAssistant: b\\n\\nHuman: c\\n\\nAssistant:"
    path.write_text(f'\ufeff{{"prompt": "{asked}", "completion": " d"}}\n', encoding="utf-8")
    (one,) = read_demonstrations(path)
    assert one.messages == (("user", "a"), ("assistant", "b"), ("user", "c"))
    assert (one.answer, one.place) == ("d", f"{path}:1")
    (pair,) = read([{"prompt": asked.replace("\\n", "\n"), "chosen": " d", "rejected": " e"}])
    assert tuple((said.role, said.content) for said in pair.prompt) == one.messages


def test_what_the_template_refuses_is_told_with_its_place(loaded: LoadedModel) -> None:
    """Before anything is trained."""
    loaded.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(InvalidInput, match=r"^f:3: prompt: the chat template refuses .* no system here"):
        encode(loaded.tokenizer, replace(demonstration("hi", "yes"), place="f:3"), 64)


def test_layers_that_are_frozen_stay_as_they_are(tmp_path: Path) -> None:
    """The lowest of a model of another form, too; more than there are is refused."""
    for make in (make_tiny_causal, make_tiny_gpt2):
        folder = str(make(tmp_path / make.__name__))
        one = load_causal(ModelSpec(path=folder, dtype="float32", threads=1, device="cpu"))
        make_optimiser(one.model, replace(OPTIONS, frozen_layers=1))
        trained = [all(value.requires_grad for value in layer.parameters()) for layer in layers_of(one.model)]
        assert trained == [False, True]
        with pytest.raises(InvalidInput, match="frozen_layers = 2, but the model has 2 layers"):
            make_optimiser(one.model, replace(OPTIONS, frozen_layers=2))


def test_no_prompt_is_on_both_sides_of_a_split(tmp_path: Path) -> None:
    """Whatever ids its rows have, 0 among them: rows of one prompt, and of one id, are held out together."""
    path = tmp_path / "data.jsonl"
    rows: list[dict[str, object]] = [
        {"prompt": f"question {n // 2}", "completion": "a", "prompt_id": f"id{n}"} for n in range(100)
    ]
    rows += [{"prompt": f"turn {n}", "completion": "a", "prompt_id": 0, "tree": f"t{n}"} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_demonstrations(path)
    assert len({row.group for row in read}) == 51
    for seed in range(10):
        fit, held = split(read, 0.3, seed)
        assert len(fit) + len(held) == 130
        assert {row.messages for row in fit}.isdisjoint(row.messages for row in held)
        assert sum(row.group == "0" for row in held) in (0, 30)
