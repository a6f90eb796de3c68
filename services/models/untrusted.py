"""A model's folder is held against itself before anything of it is built: what config.json claims, the files must hold.

A folder may come from anywhere. transformers believes its configuration: a billion layers are built one by one, a
vocabulary of 2^40 is allocated. safetensors checks offsets and sizes by itself; here only their sums are needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

from services.common.errors import InvalidInput

_LARGEST_CONFIG_BYTES = 16 * 2**20
_SLACK = 16
"""Parameters that stored numbers may stand for: four-bit weights lie eight to an int32."""
_LONGEST_CONTEXT = _LARGEST_ID = 2**24
_LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "n_layer",
    "encoder_layers",
    "decoder_layers",
)
_WIDTHS = (
    ("hidden_size", "n_embd", "d_model"),
    ("vocab_size",),
    ("intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"),
)
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_HEAD_WIDTHS = ("head_dim", "d_kv")
_OTHERS = (*_HEADS, *_HEAD_WIDTHS, "num_key_value_heads", "type_vocab_size")
_TEXT_PARTS = {"text_config", "encoder", "decoder"}
_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx")


def check_folder(folder: Path) -> None:
    """Raises InvalidInput for a configuration that cannot be read, or claims a larger model than the files hold."""
    file = folder / "config.json"
    if not file.is_file():
        return  # the loader says what is missing
    config = read_config(file)
    tensors, elements = _stored(folder)
    # What it leaves out has the architecture's own default, which may be of billions of parameters.
    for table in (*_tables(config), *_tables(_resolved(folder, set(config)))):
        _check(file, table, tensors, elements)


def check_sizes(file: Path, config: dict[str, Any], tensors: int, elements: int) -> None:
    """Raises InvalidInput where a configuration claims a larger model than so many tensors with so many elements.

    Of a file that says exactly how many they are, unlike four-bit weights in int32: twice leaves room for padding.
    """
    for table in _tables(config):
        _check(file, table, tensors, elements, slack=2)


def check_tokenizer(folder: Path) -> None:
    """Raises InvalidInput for a tokenizer.json whose ids no vocabulary has: its reader makes room up to the largest."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        model, added = table.get("model") or {}, table.get("added_tokens") or []
        vocabulary = model.get("vocab") or {}
        ids = [*(vocabulary.values() if isinstance(vocabulary, dict) else ()), *(one["id"] for one in added)]
        largest = max(ids, default=0)
        fine = largest <= _LARGEST_ID
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise InvalidInput(f"{file}: not readable as a tokenizer ({str(error)[:200]})") from error
    if not fine:
        raise InvalidInput(f"{file}: an id is larger than any vocabulary ({_LARGEST_ID:,})")


def read_config(file: Path) -> dict[str, Any]:
    """A config.json. Raises InvalidInput."""
    if file.stat().st_size > _LARGEST_CONFIG_BYTES:
        raise InvalidInput(f"{file}: larger than {_LARGEST_CONFIG_BYTES >> 20} MiB")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InvalidInput(f"{file}: not readable as JSON ({str(error)[:200]})") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{file}: expected a JSON object")
    return config


def _stored(folder: Path) -> tuple[int, int]:
    """Tensors and their elements in the folder's safetensors; 0 and 0 where there are none."""
    from safetensors import safe_open

    tensors = elements = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - no mapping
                    tensors += 1
                    elements += prod(stored.get_slice(name).get_shape())
        except Exception as error:  # its reader is Rust: SafetensorError, OSError, and panics
            raise InvalidInput(f"{file}: not readable as safetensors ({str(error)[:200]})") from error
    return tensors, elements


def _resolved(folder: Path, said: set[str]) -> dict[str, Any]:
    """The configuration with its architecture's defaults; empty where there is none: the loader says why.

    said: what config.json names. Of the parts that it does not name only text is built.
    """
    from transformers import AutoConfig

    try:
        resolved = AutoConfig.from_pretrained(str(folder), trust_remote_code=False).to_dict()
    except Exception:  # it raises whatever it stumbles over
        return {}
    built = said | _TEXT_PARTS
    return {key: part for key, part in resolved.items() if key in built or not isinstance(part, dict)}


def _tables(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration, and those of its parts (text_config, decoder, …)."""
    yield config
    yield from (part for part in config.values() if isinstance(part, dict))


def _check(file: Path, table: dict[str, Any], tensors: int, elements: int, slack: int = _SLACK) -> None:
    for name in _CONTEXTS:
        _at_most(file, name, _number(file, table, name), _LONGEST_CONTEXT, "tokens that no model reads")
    if not tensors:
        return
    for name in _LAYERS:
        _at_most(file, name, _number(file, table, name), tensors, "the tensors of the files")
    most = slack * elements
    widths = [max(_number(file, table, name) for name in names) for names in _WIDTHS]
    for name in _OTHERS:
        _at_most(file, name, _number(file, table, name), most, "the numbers in the files")
    heads, head_width = (
        max(_number(file, table, name) for name in names) for names in (_HEADS, _HEAD_WIDTHS)
    )
    told = f"{_HEADS[0]} times {_HEAD_WIDTHS[0]} times {_WIDTHS[0][0]}"
    _at_most(file, told, heads * head_width * widths[0], most, "the numbers in the files")
    for one, other in combinations(range(len(_WIDTHS)), 2):
        told = f"{_WIDTHS[one][0]} times {_WIDTHS[other][0]}"
        # The embedding's and a layer's own matrices; the third product is of none.
        if (one, other) != (1, 2):
            _at_most(
                file, told, max(widths[one], 1) * max(widths[other], 1), most, "the numbers in the files"
            )


def _number(file: Path, table: dict[str, Any], name: str) -> int:
    """A size; 0 where there is none."""
    value = table.get(name)
    if value is None or isinstance(value, list):  # some families say it of each layer
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInput(f"{file}: {name}: expected a whole number from 0, got {str(value)[:40]!r}")
    return value


def _at_most(file: Path, name: str, value: int, most: int, what: str) -> None:
    if value > most:
        raise InvalidInput(f"{file}: {name} is more than {what} ({most:,})")
