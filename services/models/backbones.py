"""Owns the bare transformers below reward models: which are encoders, how states are pooled, how many tokens fit."""

from __future__ import annotations

from typing import Any, Literal

from services.common.errors import InvalidInput
from services.models.loading import run_loader, set_threads, switch_off_dropout
from services.models.precision import torch_dtype

Pooling = Literal["mean", "last"]
_WITH_POOLER = frozenset(("bert", "roberta", "xlm-roberta", "camembert", "albert", "mpnet"))
# Kinds whose first position is the one after the padding token's: of RoBERTa's 514 a row has 512.
_AFTER_PADDING = frozenset(("roberta", "xlm-roberta", "camembert", "mpnet"))
_ENCODERS = _AFTER_PADDING | {
    "bert",
    "distilbert",
    "electra",
    "albert",
    "deberta",
    "deberta-v2",
    "modernbert",
}


def positions(config: Any) -> int:
    """Tokens that fit; 0 where the configuration names no number."""
    table = int(getattr(config, "max_position_embeddings", 0) or 0)
    taken = int(config.pad_token_id or 0) + 1 if config.model_type in _AFTER_PADDING else 0
    return table - taken if table else 0


def load_backbone(
    folder: str, dtype: str, threads: int, pooling: Pooling | None = None
) -> tuple[Any, Pooling]:
    """The bare transformer (no language-model head) and how its states are pooled."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    set_threads(threads)
    # It would report the pooling layer that is left out on purpose.
    logging.set_verbosity_error()
    config = run_loader(folder, AutoConfig.from_pretrained)
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidInput(
            f"model {folder} has an encoder and a decoder: a reward model is made from one of them"
        )
    options = {"add_pooling_layer": False} if kind in _WITH_POOLER else {}
    backbone, found = run_loader(
        folder,
        AutoModel.from_pretrained,
        dtype=torch_dtype(dtype),
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    if missing := sorted(name for name in found["missing_keys"] if "pooler" not in name):
        # transformers would go on with random numbers in their place.
        raise InvalidInput(f"model {folder} is not whole: {missing[0]} is missing")
    switch_off_dropout(backbone)
    backbone.eval()
    return backbone, pooling or ("mean" if kind in _ENCODERS else "last")
