"""Padding-free forward passes: rows side by side in one sequence, attention kept within each. Knows no head.

    rows        [a a a] [b] [c c]              every linear layer sees 6 tokens and no padding
    one pass    [a a a b c c]   positions 0 1 2 0 0 1
    attention    a→a     b→b c→c               one call for each row

Works for models that take their attention from transformers' registry. `packing_holds` tries it against the
padded pass: a model that does more with positions or masks than meets the eye fails there, not in a score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from torch.nn.functional import scaled_dot_product_attention

from services.models.facts import language_config

ATTENTION = "trimtab_packed"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Before:
    """What a row attends to before its own tokens.

    places: [shared] int64, where it stands in the pass. seen: [own, shared + own] bool, which of all that each of the
    row's own tokens sees.
    """

    places: torch.Tensor
    seen: torch.Tensor

    @classmethod
    def of(cls, places: Sequence[int], own: int, device: torch.device) -> Before:
        """Of a causal row with so many tokens of its own."""
        shared = len(places)
        every = torch.ones((own, shared + own), dtype=torch.bool, device=device)
        return cls(torch.tensor(places, dtype=torch.long, device=device), every.tril(shared))


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    packed_lengths: Sequence[int] = (),
    packed_before: Sequence[Before | None] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' registry, row by row.

    query [1, heads, tokens, width], key and value [1, key heads, tokens, width]; packed_lengths: tokens of each
    row, in order, together `tokens`; packed_before: what comes before each in rows before it, in causal models.
    Gives [1, tokens, heads, width].
    """
    if attention_mask is not None:
        raise ValueError("packed rows take no mask")
    out = attend_rows(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packed_lengths or (query.shape[2],),
        causal=bool(getattr(module, "is_causal", True)),
        scale=scaling,
        before=packed_before,
    )
    return out[None], None


def attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    *,
    causal: bool,
    scale: float | None,
    before: Sequence[Before | None] = (),
) -> torch.Tensor:
    """Attention within each row: query [tokens, heads, width], key and value [tokens, key heads, width], rows of
    these lengths one after the other. before: of each row, what it sees of others. Gives [tokens, heads, width]."""
    if before and not causal:
        raise ValueError("what comes after a shared beginning would be seen from within it")
    out = torch.empty((*query.shape[:2], value.shape[2]), dtype=query.dtype, device=query.device)
    start = 0
    for length, earlier in zip(lengths, before or [None] * len(lengths), strict=True):
        row = slice(start, start + length)
        start += length
        if earlier is None:
            out[row] = _attend(query[row], key[row], value[row], causal and length > 1, scale)
        else:
            keys, values = (torch.cat((each[earlier.places], each[row])) for each in (key, value))
            out[row] = _attend(query[row], keys, values, False, scale, earlier.seen)
    return out


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    scale: float | None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    attended = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=seen,
        is_causal=causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[0].transpose(0, 1)


def packed_states(
    backbone: Any, rows: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
) -> torch.Tensor:
    """Last hidden states of all tokens, row after row: [tokens, width]."""
    lengths = [len(row) for row in rows]
    device = backbone.device
    options: dict[str, Any] = {}
    if token_types is not None:
        options["token_type_ids"] = _one_row(token_types, device)
    if not getattr(backbone.config, "is_encoder_decoder", False):
        options["position_ids"] = _one_row([range(length) for length in lengths], device)
    return backbone(
        input_ids=_one_row(rows, device), packed_lengths=lengths, use_cache=False, **options
    ).last_hidden_state[0]


def enable_packing(backbone: Any) -> bool:
    """Switch a backbone to packed passes; false, and unchanged, for one that packing does not suit."""
    return packs_with(backbone, ATTENTION, packed_attention)


def packs_with(backbone: Any, name: str, attention: Callable[..., Any]) -> bool:
    """The same with an attention of this name in transformers' registry, which takes `packed_lengths`."""
    if not getattr(backbone, "_supports_attention_backend", False) or windowed(backbone.config):
        return False
    from transformers import AttentionInterface

    AttentionInterface.register(name, attention)
    before = backbone.config._attn_implementation
    try:
        rows = probe_rows(backbone)
        expected = padded_states(backbone, rows)
        backbone.set_attn_implementation(name)
        with torch.inference_mode():
            found = packed_states(backbone, rows)
        if same_states(expected, found):
            return True
    except Exception as error:  # whatever a model raises that knows no such positions or arguments
        _log.info("packing does not suit this model", model=type(backbone).__name__, reason=str(error))
    backbone.set_attn_implementation(before)
    return False


def windowed(config: Any) -> bool:
    """Whether some layer sees less than the whole row before it, or bends its attention scores."""
    config = language_config(config)
    kinds = set(getattr(config, "layer_types", None) or ())
    capped = getattr(config, "attn_logit_softcapping", None)
    return bool(kinds - {"full_attention"}) or bool(capped) or bool(getattr(config, "sliding_window", None))


def _one_row(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    return torch.tensor([[each for row in rows for each in row]], dtype=torch.long, device=device)


def probe_rows(backbone: Any) -> list[list[int]]:
    """Three rows of token ids to try a way of passing on; no two begin alike."""
    size = int(backbone.get_input_embeddings().weight.shape[0])
    return [[(7 * at + 11 * row) % size for at in range(length)] for row, length in enumerate((9, 1, 5))]


def padded_states(backbone: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Last hidden states of all tokens by the model's own padded pass, row after row: [tokens, width]."""
    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long, device=backbone.device)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    with torch.inference_mode():
        states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.cat([states[at, : len(row)] for at, row in enumerate(rows)])


def same_states(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether two computations agree within the rounding of the dtype: relative to how far the states spread."""
    tolerance = 1e-3 if expected.dtype == torch.float32 else 5e-2
    spread = float(expected.float().std()) or 1.0
    return float((expected.float() - found.float()).abs().mean()) <= tolerance * spread
