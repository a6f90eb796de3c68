"""Completions of a loaded causal model, by transformers' `generate`. Knows no task and no service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from services.common.errors import InvalidInput


def drawn(
    model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, *, temperature: float
) -> list[tuple[str, int]]:
    """(text, tokens) for each prompt's ids; a temperature of 0 is greedy. Draws from torch's global generator.

    From the model's own distribution, as a policy service draws: without the penalties and filters that its
    generation_config may have. Raises InvalidInput where the longest prompt leaves no room in the model's context.
    """
    check_room(model, rows, max_new_tokens)
    width = max(map(len, rows))
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
    ends = _ends(model, end)
    with torch.inference_mode(), _plainly(model, ends):
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=int(pad or 0),
            **sampling,
        )[:, width:].tolist()
    texts = tokenizer.batch_decode(made, skip_special_tokens=True)
    return [(str(text), _length(row, ends)) for text, row in zip(texts, made, strict=True)]


def check_room(model: Any, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises InvalidInput where the longest prompt leaves no room: to be asked of all before any is drawn."""
    limit = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    width = max(map(len, rows), default=0)
    if limit and width + max_new_tokens > limit:
        raise InvalidInput(
            f"a prompt has {width} tokens, which leaves no room for {max_new_tokens} more in a context of {limit}"
        )


def _ends(model: Any, end: int | None) -> list[int]:
    """Tokens that end an answer: the model's, and its tokenizer's."""
    told = model.generation_config.eos_token_id
    listed = told if isinstance(told, list) else [told]
    return sorted({int(one) for one in (*listed, end) if one is not None})


@contextmanager
def _plainly(model: Any, ends: Sequence[int]) -> Iterator[None]:
    """transformers fills in from the model's configuration whatever a call does not say, so that is put aside."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=list(ends) or None,
        decoder_start_token_id=own.decoder_start_token_id,
    )
    try:
        yield
    finally:
        model.generation_config = own


def _length(row: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens up to the end token, which counts."""
    return next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
