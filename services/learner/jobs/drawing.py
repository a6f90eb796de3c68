"""Completions of a loaded causal model, by transformers' `generate`. Knows no task and no service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from services.common.errors import InvalidInput


def drawn(
    model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, *, temperature: float
) -> list[tuple[str, int]]:
    """(text, tokens) for each prompt's ids; a temperature of 0 is greedy. Draws from torch's global generator.

    Raises InvalidInput where the longest prompt leaves no room in the model's context.
    """
    limit = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    width = max(map(len, rows))
    if limit and width + max_new_tokens > limit:
        raise InvalidInput(
            f"a prompt has {width} tokens, which leaves no room for {max_new_tokens} more in a context of {limit}"
        )
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    ids = torch.full((len(rows), width), int(pad or 0))
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):  # on the left: what is made follows the prompt at once
        ids[at, width - len(row) :] = torch.tensor(row)
        mask[at, width - len(row) :] = 1
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=int(pad or 0),
            **sampling,
        )[:, width:].tolist()
    texts = tokenizer.batch_decode(made, skip_special_tokens=True)
    return [(str(text), _length(row, end)) for text, row in zip(texts, made, strict=True)]


def _length(row: Sequence[int], end: int | None) -> int:
    """Tokens up to the end token, which counts."""
    return row.index(end) + 1 if end in row else len(row)
