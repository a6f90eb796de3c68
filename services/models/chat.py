"""A conversation as text by a tokenizer's own chat template. Knows what templates refuse, not what is done with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from services.common.errors import InvalidInput


def rendered(tokenizer: Any, messages: Sequence[tuple[str, str]], *, generate: bool) -> str:
    """The text of (role, content) pairs; `generate` opens the assistant's turn at the end.

    No messages at all are an empty one of the user, since templates take no empty conversation. InvalidInput for what
    the template refuses, for example two users in a row.
    """
    turns = [{"role": role, "content": content} for role, content in messages or (("user", ""),)]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    except TemplateError as error:
        raise InvalidInput(f"the chat template refuses these messages: {error}") from error
    return text


def closing_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the template puts after the end token of an answer, as ids: a newline with ChatML, with most nothing.

    Nothing, too, where there is no template, or it ends no answer with the tokenizer's end token, or takes none.
    """
    if not getattr(tokenizer, "chat_template", None) or tokenizer.eos_token_id is None:
        return ()
    answer = "answer"
    try:
        text = rendered(tokenizer, (("user", "question"), ("assistant", answer)), generate=False)
    except InvalidInput:
        return ()
    _, ended, after = text.rpartition(tokenizer.eos_token)
    if not ended or answer in after:
        return ()
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tuple(ids[len(ids) - ids[::-1].index(tokenizer.eos_token_id) :])
