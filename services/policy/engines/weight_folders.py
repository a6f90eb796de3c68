"""A model in Hugging Face form for a server that loads it from a folder: what the policy holds, written anew each time.

A head that is tied to the embeddings is written beside them, and the configuration says so: vLLM on processors keeps a
packed copy of a head, which only a tensor of the head's name renews. The values are the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WEIGHTS_FILE = "model.safetensors"
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class WeightFolders:
    """Folders weights-0, weights-1, … in `root`, with the configuration and tokenizer of `model`."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self._model = root, model
        self.written = 0

    def write(self, tensors: Mapping[str, torch.Tensor]) -> Path:
        """The next one."""
        from safetensors.torch import save_file

        target = self.root / f"weights-{self.written}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in self._model.glob("*.json"):
            if not file.name.endswith(".index.json"):
                shutil.copy(file, target)
        weights = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if _HEAD not in weights and _EMBEDDINGS in weights:
            _untie(target / "config.json")
            weights[_HEAD] = weights[_EMBEDDINGS].clone()
        save_file(weights, target / _WEIGHTS_FILE, metadata={"format": "pt"})
        self.written += 1
        return target

    def drop(self, target: Path) -> None:
        """It has been read."""
        shutil.rmtree(target, ignore_errors=True)


def _untie(config: Path) -> None:
    words = json.loads(config.read_text(encoding="utf-8"))
    words["tie_word_embeddings"] = False
    config.unlink()  # a copy is as read-only as what it was copied from
    config.write_text(json.dumps(words, indent=2), encoding="utf-8")
