"""Owns how many tokens of a row a backbone has positions for. Pure; looks at a configuration alone."""

from __future__ import annotations

from typing import Any

AFTER_PADDING = frozenset(("roberta", "xlm-roberta", "camembert", "mpnet"))
"""Kinds whose first position is the one after the padding token's: of RoBERTa's 514 a row has 512."""


def positions(config: Any) -> int:
    """Tokens that fit; 0 where the configuration names no number."""
    table = int(getattr(config, "max_position_embeddings", 0) or 0)
    taken = int(config.pad_token_id or 0) + 1 if config.model_type in AFTER_PADDING else 0
    return table - taken if table else 0
