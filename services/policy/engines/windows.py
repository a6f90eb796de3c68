"""What each layer of a model of transformers sees of the rows in a cache, where some see a window alone.

Rows stand at columns of their own, while transformers would count a window back from the longest row's end: so masks
are made here, one for each kind of layer.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from services.common.errors import InvalidInput
from services.models.facts import language_config
from services.policy.engines.kv_cache import KeyValueCache

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Windows:
    """Of one model. Raises InvalidInput for layers that see something else than everything or a window."""

    def __init__(self, model: Any) -> None:
        config = language_config(model.config)
        # GPT-Neo's layers make their own windows, of the cache's columns.
        if "local" in (getattr(config, "attention_layers", None) or ()):
            raise InvalidInput(f"{type(model).__name__}: layers of local attention are not supported")
        self._window = int(getattr(config, "sliding_window", None) or 0)
        kinds = set(getattr(config, "layer_types", None) or [_SLIDING if self._window else _FULL])
        if odd := sorted(kinds - {_FULL, _SLIDING}):
            raise InvalidInput(f"{type(model).__name__}: layers of {odd[0]} are not supported")
        self._slides = bool(self._window) and _SLIDING in kinds
        self._by_kind = self._slides and _takes_masks_by_kind(model)
        if self._slides and not self._by_kind and _FULL in kinds:
            raise InvalidInput(f"{type(model).__name__}: it takes no masks by kind of layer")

    def masks(self, cache: KeyValueCache) -> Any:
        """The model's attention_mask for a pass of one token a row, after `cache.extend()`."""
        if not self._slides:
            return cache.seen()
        near = cache.seen_within(self._window)
        return {_FULL: cache.seen_within(0), _SLIDING: near} if self._by_kind else near


def _takes_masks_by_kind(model: Any) -> bool:
    """Whether it takes a mask for each kind of layer, or one for all: tried with one token."""
    mask = torch.zeros((1, 1, 1, 1), dtype=model.dtype, device=model.device)
    layers = [DynamicLayer() for _ in range(language_config(model.config).num_hidden_layers)]
    try:
        with torch.inference_mode():
            model.base_model(
                input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device),
                attention_mask={_FULL: mask, _SLIDING: mask},
                past_key_values=Cache(layers=layers),
                use_cache=True,
            )
    except (AttributeError, TypeError, ValueError):
        return False
    return True
