"""Context distillation (arXiv 2112.00861, 2.2): answers made under a longer prompt, to be learned without it.

    teacher reads   [system: the context] prompt ─▶ answer
    student reads                         prompt ─▶ answer          what sft trains on

Owns making the answers; the starting model is its own teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from services.common.errors import InvalidInput
from services.learner.jobs.demonstrations import Demonstration
from services.learner.jobs.drawing import check_room, drawn
from services.models.chat import rendered


def under_context(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Demonstration],
    context: str,
    *,
    seed: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_rows: int = 16,
    heard: Callable[[int, int], None] | None = None,
) -> list[Demonstration]:
    """The prompts with the answers that the model gives when the context stands before them; empty ones are left out.

    `heard` hears (prompts answered, prompts). Raises InvalidInput where model and context do not go together.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidInput("context distillation needs a model with a chat template")
    encoded = [_encoded(model, tokenizer, one, context, max_new_tokens) for one in prompts]
    answered: list[Demonstration] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_rows):
            part, rows = prompts[start : start + batch_rows], encoded[start : start + batch_rows]
            answers = [
                said for said, _ in drawn(model, tokenizer, rows, max_new_tokens, temperature=temperature)
            ]
            answered += [
                replace(one, answer=said) for one, said in zip(part, answers, strict=True) if said.strip()
            ]
            if heard:
                heard(min(start + batch_rows, len(prompts)), len(prompts))
    return answered


def _encoded(model: Any, tokenizer: Any, one: Demonstration, context: str, max_new_tokens: int) -> list[int]:
    """Ids of the prompt under the context. Raises InvalidInput with its place: before hours go into the others."""
    try:
        ids: list[int] = tokenizer(_asked(tokenizer, one, context), add_special_tokens=False)["input_ids"]
        check_room(model, [ids], max_new_tokens)
    except InvalidInput as error:
        raise InvalidInput(f"{one.place}: prompt: {error}" if one.place else str(error)) from None
    return ids


def _asked(tokenizer: Any, one: Demonstration, context: str) -> str:
    """The prompt under the context; a system message that is there already comes after it."""
    system = [content for role, content in one.messages[:1] if role == "system"]
    rest = one.messages[1:] if system else one.messages
    return rendered(tokenizer, (("system", "\n\n".join([context, *system])), *rest), generate=True)
