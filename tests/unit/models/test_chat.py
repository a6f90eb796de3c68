"""Conversations by a chat template: what has no messages, and what a template refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import InvalidInput
from services.models.chat import closing_ids, rendered
from services.models.reward_model import ScoreText, load_reward_model
from tests.fakes.tiny_models import CHAT_TEMPLATE, make_tiny_reward_model, tiny_tokenizer

REFUSING = "{{ raise_exception('after the user the assistant speaks') }}"


def test_a_conversation_is_rendered_by_the_template() -> None:
    """Turns in order, with the assistant's opened where something is to be written."""
    text = rendered(tiny_tokenizer(), [("system", "s"), ("user", "u")], generate=True)
    assert text == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"


def test_no_messages_are_an_empty_one() -> None:
    """A completion without a prompt is one to a user who said nothing."""
    tokenizer = tiny_tokenizer()
    assert rendered(tokenizer, [], generate=True) == rendered(tokenizer, [("user", "")], generate=True)


def test_what_a_template_refuses_is_the_callers_mistake() -> None:
    """The template's own words come back as INVALID_ARGUMENT."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = REFUSING
    with pytest.raises(InvalidInput, match="after the user the assistant speaks"):
        rendered(tokenizer, [("user", "u")], generate=True)


def test_reward_models_score_completions_without_a_prompt(tmp_path: Path) -> None:
    """Found by fuzzing: a reward model with a chat template failed on a row without a prompt."""
    folder = make_tiny_reward_model(tmp_path / "m", pooling="last", seed=1)
    model = load_reward_model(str(folder), dtype="float32", threads=1, device="cpu")
    assert model.encode(ScoreText((), "hello")) == model.encode(ScoreText((("user", ""),), "hello"))
    model.tokenizer.chat_template = REFUSING
    with pytest.raises(InvalidInput):
        model.encode(ScoreText((("user", "u"),), "hello"))


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (CHAT_TEMPLATE, ""),
        (CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n"), "\n"),
        (CHAT_TEMPLATE.replace("<|end|>", "<|pad|>"), ""),
        ("{% for message in messages %}<|end|>{{ message['content'] }}{% endfor %}", ""),
        (REFUSING, ""),
        (None, ""),
    ],
)
def test_what_follows_the_end_of_an_answer(template: str | None, closing: str) -> None:
    """After the last end token, if the answer stands before it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert closing_ids(tokenizer) == tuple(tokenizer(closing, add_special_tokens=False)["input_ids"])
