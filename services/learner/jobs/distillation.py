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
    answered: list[Demonstration] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_rows):
            part = prompts[start : start + batch_rows]
            texts = [_asked(tokenizer, one, context) for one in part]
            answers = _generated(model, tokenizer, texts, max_new_tokens, temperature)
            answered += [
                replace(one, answer=said) for one, said in zip(part, answers, strict=True) if said.strip()
            ]
            if heard:
                heard(min(start + batch_rows, len(prompts)), len(prompts))
    return answered


def _asked(tokenizer: Any, one: Demonstration, context: str) -> str:
    """The prompt under the context; a system message that is there already comes after it."""
    system = [content for role, content in one.messages[:1] if role == "system"]
    rest = one.messages[1:] if system else one.messages
    return rendered(tokenizer, (("system", "\n\n".join([context, *system])), *rest), generate=True)


def _generated(
    model: Any, tokenizer: Any, texts: Sequence[str], max_new_tokens: int, temperature: float
) -> list[str]:
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    limit = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    width = max(map(len, rows))
    if limit and width + max_new_tokens > limit:
        raise InvalidInput(
            f"context and prompt have {width} tokens, which leaves no room for {max_new_tokens} more"
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((len(rows), width), int(pad or 0))
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):  # on the left: what is made follows the prompt at once
        ids[at, width - len(row) :] = torch.tensor(row)
        mask[at, width - len(row) :] = 1
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    )
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=int(pad or 0),
            **sampling,
        )
    return [str(text) for text in tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)]
