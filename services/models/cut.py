"""Some layers of a causal model as a model of its own: `NAME?layers=0-9` or `NAME?layers=0-20,27-29`.

Owns the tensors' names and the configuration; the rest (embeddings, last norm, head, tokenizer) stays as it is.
Models of the Llama family's form, whose layers are `model.layers.N`.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.common.errors import InvalidInput
from services.models.facts import file_digest
from services.models.gguf import cache_folder
from services.models.untrusted import check_folder, read_config

MARK = "?layers="
_PART = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja")


def layer_numbers(written: str) -> tuple[int, ...]:
    """The layers that `0-20,27-29` names, from 0, in their order. Raises InvalidInput."""
    numbers: list[int] = []
    for part in written.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise InvalidInput(f"layers={written}: expected numbers and ranges such as 0-20,27-29")
        first, last = int(found[1]), int(found[2] or found[1])
        numbers += range(first, last + 1)
    if numbers != sorted(set(numbers)) or not numbers:
        raise InvalidInput(f"layers={written}: expected rising numbers, each once")
    return tuple(numbers)


def cut(folder: Path, written: str) -> Path:
    """The folder of that model with those layers alone, made on first use. Raises InvalidInput."""
    keep = layer_numbers(written)
    check_folder(folder)
    config = read_config(folder / "config.json")
    there = config.get("num_hidden_layers", 0)
    if not isinstance(there, int):
        raise InvalidInput(f"{folder.name}: config.json: num_hidden_layers: expected a whole number")
    if keep[-1] >= there:
        raise InvalidInput(f"layers={written}: {folder.name} has layers 0 to {there - 1}")
    digest = file_digest(sorted(folder.glob("*.safetensors")))[:12]
    target = cache_folder() / f"{folder.name}-{digest}-layers-{written.replace(' ', '')}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".cutting-"))
    try:
        _write(folder, aside, config, keep)
        if not target.exists():
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def said_of(keep: Sequence[int], config: Mapping[str, Any], there: int) -> dict[str, list[Any]]:
    """What a configuration of `there` layers says of each in lists of that length, as some families' do: of these."""
    return {
        name: [said[layer] for layer in keep]
        for name, said in config.items()
        if isinstance(said, list) and len(said) == there
    }


def _write(folder: Path, into: Path, config: dict[str, Any], keep: tuple[int, ...]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    place = {str(layer): at for at, layer in enumerate(keep)}
    tensors, layers = {}, 0
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - no mapping
                found = _LAYER.fullmatch(name)
                layers += found is not None
                if found is None:
                    tensors[name] = stored.get_tensor(name)
                elif found[2] in place:
                    tensors[f"{found[1]}{place[found[2]]}{found[3]}"] = stored.get_tensor(name)
    if not layers:
        raise InvalidInput(
            f"{folder}: no model of the Llama family's form, so its layers cannot be told apart"
        )
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    each = said_of(keep, config, config["num_hidden_layers"])
    for path in (path for pattern in _COPIED for path in folder.glob(pattern)):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, into / path.name)
    written = json.dumps({**config, **each, "num_hidden_layers": len(keep)}, indent=2)
    (into / "config.json").write_text(written + "\n", encoding="utf-8")
