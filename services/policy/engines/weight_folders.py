"""A model in Hugging Face form for a server that loads it from a folder: what the policy holds, written anew each time.

A head that is tied to the embeddings is written beside them, and the configuration says so: vLLM on processors keeps a
packed copy of a head, which only a tensor of the head's name renews. The values are the same.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from services.models.loading import LoadedModel

_WEIGHTS_FILE, _CONFIG_FILE = "model.safetensors", "config.json"
# A server that answers late may be reading what an earlier call was given; a third would fill the disk.
_MOST_KEPT = 2
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class WeightFolders:
    """Folders `name`-0, `name`-1, … in `root`, with the configuration and tokenizer of `loaded`.

    They stay until `drop`, the newest of them: of a reload that failed nobody knows whether it is still reading.
    name: another for each of those who share the root.
    """

    def __init__(self, root: Path, loaded: LoadedModel, name: str = "weights") -> None:
        self.root, self._loaded, self._name = root, loaded, name
        self.written = 0
        self._kept: deque[Path] = deque()

    def write(self, tensors: Mapping[str, torch.Tensor]) -> Path:
        """The next one; those before the last go."""
        from safetensors.torch import save_file

        target = self.root / f"{self._name}-{self.written}"
        self._drop_to(_MOST_KEPT - 1)
        shutil.rmtree(target, ignore_errors=True)
        self._kept.append(target)
        self.written += 1
        target.mkdir(parents=True)
        model = self._loaded.model
        # From memory, not from where the model came from: that may be a hub, or a single file.
        model.config.save_pretrained(target)
        self._loaded.tokenizer.save_pretrained(target)
        if model.can_generate():
            model.generation_config.save_pretrained(target)
        weights = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if _HEAD not in weights and _EMBEDDINGS in weights:
            _untie(target / _CONFIG_FILE)
            weights[_HEAD] = weights[_EMBEDDINGS].clone()
        save_file(weights, target / _WEIGHTS_FILE, metadata={"format": "pt"})
        return target

    def drop(self) -> None:
        """All have been read."""
        self._drop_to(0)

    def _drop_to(self, count: int) -> None:
        while len(self._kept) > count:
            shutil.rmtree(self._kept.popleft(), ignore_errors=True)


def _untie(config: Path) -> None:
    words = json.loads(config.read_text(encoding="utf-8"))
    words["tie_word_embeddings"] = False
    config.write_text(json.dumps(words, indent=2), encoding="utf-8")
