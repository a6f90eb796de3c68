"""Prompts of a run: what is read, and the exact line that each mistake gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.common.errors import InvalidInput, NotFound
from services.common.spec.run import DataSpec
from services.learner.prompts import Prompt, load_prompts
from tests.fakes.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def load(path: Path, *, template: bool = True, context: int = 64) -> list[Prompt]:
    tokenizer = TOKENIZER if template else tiny_tokenizer(chat_template=False)
    return load_prompts(DataSpec(prompts=str(path)), tokenizer, context_length=context, max_new_tokens=16)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_prompts_of_all_forms(tmp_path: Path) -> None:
    """Text and messages, of this split or of none, with ids, names and the other columns as strings."""
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "Say hi", "prompt_id": "one", "topic": "greeting", "weight": 2},
        {"prompt": [{"role": "user", "content": "Say hi"}], "split": "train"},
        {"prompt": "of none", "split": None},
        {"prompt": "not this one", "split": "test"},
    )
    one, two, three = load(path)
    assert three.text == "of none"
    assert TOKENIZER.decode(one.token_ids.tolist()) == "Say hi"
    assert (one.prompt_id, one.text, one.messages) == ("one", "Say hi", ())
    assert one.columns == {"topic": "greeting", "weight": "2"}
    assert TOKENIZER.decode(two.token_ids.tolist()) == "<|user|>Say hi<|end|><|assistant|>"
    assert (two.prompt_id, two.text, two.messages) == ("2", "Say hi", (("user", "Say hi"),))


def test_an_empty_system_message_is_one(tmp_path: Path) -> None:
    """Orca's rows have one; that the last message says something is enough."""
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    [prompt] = load(write(tmp_path / "p.jsonl", {"prompt": messages}))
    assert TOKENIZER.decode(prompt.token_ids.tolist()) == "<|system|><|end|><|user|>hi<|end|><|assistant|>"
    assert (prompt.text, prompt.messages) == ("hi", (("system", ""), ("user", "hi")))


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    """U+2028 inside a string, which JSON allows, is no end of a line; blank lines are nothing."""
    path = write(tmp_path / "p.jsonl", {"prompt": "one\u2028two\x85three"}, {"prompt": "next"})
    path.write_text("\n  \n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert [prompt.text for prompt in load(path)] == ["one\u2028two\x85three", "next"]


def refused(path: Path, *, template: bool = True) -> str:
    with pytest.raises(InvalidInput) as caught:
        load(path, template=template)
    return str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there."""
    with pytest.raises(NotFound) as caught:
        load(tmp_path / "none.jsonl")
    assert str(caught.value) == f"{tmp_path}/none.jsonl: no such file"


@pytest.mark.parametrize("content", ["", "\n \n", '{"prompt": "x", "split": "test"}\n'])
def test_empty_files(tmp_path: Path, content: str) -> None:
    """Nothing, blank lines, or nothing of this split."""
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    assert refused(path) == f"{path}: the prompt file has no prompt of split 'train'"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x"', "not JSON (Expecting ',' delimiter: line 1 column 15 (char 14))"),
        ('["x"]', "expected an object, got list"),
    ],
)
def test_malformed_lines(tmp_path: Path, line: str, message: str) -> None:
    """No JSON, or no object: file and line."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    assert refused(path) == f"{path}:2: {message}"


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "",
        "  \n",
        7,
        [],
        {},
        ["hi"],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": " "}],
        [{"role": "user", "content": "hi"}, "hi"],
    ],
)
def test_wrong_prompts(tmp_path: Path, prompt: object) -> None:
    """Neither text nor messages, or empty ones: file, line and field."""
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, {"prompt": prompt})
    expected = "prompt: expected text, or a list of {role, content}, that is not empty"
    assert refused(path) == f"{path}:2: {expected}"


def test_a_row_without_prompt(tmp_path: Path) -> None:
    """Another column's name is no prompt."""
    path = write(tmp_path / "p.jsonl", {"text": "hi"})
    assert refused(path).startswith(f"{path}:1: prompt: expected text")


def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    """48 tokens and 16 new ones fill a context of 64; one more is refused with how much it is over."""
    path = write(tmp_path / "p.jsonl", {"prompt": "x" * 48})
    assert len(load(path)) == 1
    path = write(tmp_path / "p.jsonl", {"prompt": "x" * 48}, {"prompt": "x" * 50, "prompt_id": "long"})
    assert refused(path) == (
        f"{path}: prompt long has 50 tokens; with 16 new ones that is 2 over the model's context of 64"
    )


def test_messages_without_a_template(tmp_path: Path) -> None:
    """A model without a chat template cannot be given messages: file and line."""
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, {"prompt": [{"role": "user", "content": "hi"}]})
    assert refused(path, template=False) == (
        f"{path}:2: the prompt is a list of messages, but the model's tokenizer has no chat template"
    )


def test_not_utf_8(tmp_path: Path) -> None:
    """Another encoding is said, not guessed."""
    path = tmp_path / "p.jsonl"
    path.write_bytes('{"prompt": "café"}\n'.encode("latin-1"))
    assert refused(path) == f"{path}: not UTF-8 text (invalid continuation byte at byte 15)"
