"""A causal model with a scalar head in plain transformers, padded batches, as people write it. Knows no server.

Peers and the direct loop share it, so that they differ in nothing but how requests become batches. The folder is
one of Trimtab's reward models (safetensors); it is read here without Trimtab.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEAD_FILE = "reward_head.safetensors"
PREFIX = "SCORING_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a peer is told, through the environment. wait_milliseconds: for a batch to fill."""

    folder: str
    threads: int = 2
    dtype: str = "bfloat16"
    max_tokens: int = 512
    batch_rows: int = 32
    wait_milliseconds: int = 10

    def environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads."""
        return {PREFIX + name.upper(): str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings that this process was started with."""
        read = {name: os.environ[PREFIX + name.upper()] for name in cls.__dataclass_fields__}
        numbers = {name: int(value) for name, value in read.items() if name not in ("folder", "dtype")}
        return cls(folder=read["folder"], dtype=read["dtype"], **numbers)


class TextEncoder:
    """Text to token ids, of which the last `max_tokens` are kept."""

    def __init__(self, settings: Settings) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(settings.folder)
        self._max_tokens = settings.max_tokens

    def encode(self, text: str) -> list[int]:
        """The ids of one text; special tokens stand in the text as it comes."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[-self._max_tokens :]


class ScalarModel:
    """Backbone and head; one forward pass for each call."""

    def __init__(self, settings: Settings) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import AutoModel

        torch.set_num_threads(settings.threads)
        self._torch = torch
        self._backbone: Any = AutoModel.from_pretrained(
            settings.folder, dtype=getattr(torch, settings.dtype), use_safetensors=True
        ).eval()
        head = load_file(Path(settings.folder) / HEAD_FILE)
        self._weight, self._bias = head["weight"].float(), head["bias"].float()

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The head's output at the last token of each row, by one padded pass."""
        torch = self._torch
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros((len(rows), int(lengths.max())), dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
        mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
        # Without padding there is nothing to mask, and attention without a mask is faster.
        options = {} if bool(mask.all()) else {"attention_mask": mask}
        with torch.inference_mode():
            states = self._backbone(input_ids=ids, use_cache=False, **options).last_hidden_state
            last = states[torch.arange(len(rows)), lengths - 1].float()
            outputs = torch.nn.functional.linear(last, self._weight, self._bias)[:, 0]
        values: list[float] = outputs.tolist()
        return values
