"""Models from anywhere: config.json, safetensors, tokenizers and GGUF files that claim, overlap, nest and lie.

NotFound, InvalidInput, Mismatch or Corrupted in one line, or a model that loads and runs; never more memory than a
tiny model may need, whatever sizes its files declare.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from services.common.errors import Corrupted, InvalidInput, Mismatch, NotFound
from services.models.loading import load_causal
from services.models.reward_model import load_reward_model
from tests.fakes.gguf_files import write_gguf
from tests.fakes.tiny_models import make_tiny_causal, make_tiny_reward_model
from tests.fakes.tiny_runs import model_spec
from tests.fuzz import odd
from tests.fuzz.surface import Surface, documented

_ERRORS = (NotFound, InvalidInput, Mismatch, Corrupted)
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_WORDS = (
    "llama",
    "gpt2",
    "bert",
    "t5",
    "float16",
    "silu",
    "<|end|>",
    "LlamaForCausalLM",
    "x--y",
    "modeling.py",
)
_SIZES = (0, 1, -1, 3, 1000, 2**20, 2**31, 2**40, 2**63)
Sent = tuple[str, str, bytes]


@contextmanager
def opened(folder: Path) -> Iterator[Surface]:
    """A causal model, a reward model and a GGUF; one file of one of them is replaced for each input."""
    os.environ["TRIMTAB_CACHE"] = str(folder / "cache")
    sound = {
        "causal": make_tiny_causal(
            folder / "causal", layers=1, width=8, extra_tokens=("ab", "<|endoftext|>")
        ),
        "reward": make_tiny_reward_model(folder / "reward", seed=1),
    }
    gguf = folder / "sound.gguf"
    write_gguf(gguf, sound["causal"])
    files = {
        (kind, name): (path / name).read_bytes()
        for kind, path in sound.items()
        for name in sorted(file.name for file in path.iterdir())
        if name in _FILES or kind == "reward"
    }
    files["gguf", "model.gguf"] = gguf.read_bytes()

    def run(sent: Sent) -> str:
        kind, name, data = sent
        if kind == "gguf":
            path = folder / name
            path.write_bytes(data)
            return f"gguf {documented(lambda: load_causal(model_spec(path)), *_ERRORS)}"
        tried = folder / "tried"
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(sound[kind], tried)
        (tried / name).write_bytes(data)
        if kind == "causal":
            return f"causal {name} {documented(lambda: load_causal(model_spec(tried)), *_ERRORS)}"
        outcome = documented(lambda: load_reward_model(str(tried), dtype="float32", threads=1), *_ERRORS)
        return f"reward {name} {outcome}"

    def good() -> None:
        for (kind, name), data in files.items():
            assert run((kind, name, data)).endswith("accepted"), f"{kind} {name} that is sound"

    good()
    yield Surface(lambda rng: _drawn(rng, files), run, good, peak_mib=512, cpu_seconds=60)


def _drawn(rng: Random, files: dict[tuple[str, str], bytes]) -> Sent:
    kind, name = rng.choice(list(files))
    data = files[kind, name]
    if name.endswith(".safetensors") and rng.random() < 0.7:
        return kind, name, _safetensors(rng, data)
    if name.endswith(".json") and rng.random() < 0.85:
        return kind, name, _json(rng, json.loads(data))
    if name.endswith(".gguf") and rng.random() < 0.5:
        at = rng.choice((4, 8, 16, rng.randrange(min(len(data), 2000))))  # version, tensors, keys, or within
        return kind, name, data[:at] + struct.pack("<Q", rng.choice(_SIZES) & 2**64 - 1) + data[at + 8 :]
    return kind, name, odd.damaged(rng, data)


def _json(rng: Random, tree: Any) -> bytes:
    how = rng.random()
    if how < 0.05:
        return rng.choice(
            (b"[" * 100_000, b'{"a":' * 50_000, b"null", b"[]", b"{}", b"", b"\xff\xfe", b"9" * 5_000)
        )
    if how < 0.4 and isinstance(tree, dict):
        numbers = [key for key, value in tree.items() if type(value) in (int, float)]
        for _ in range(rng.choice((1, 1, 2))):
            if numbers:
                tree[rng.choice(numbers)] = rng.choice(_SIZES)
        return json.dumps(tree).encode()
    return json.dumps(odd.changed(rng, tree, _WORDS)).encode("utf-8", "replace")


def _safetensors(rng: Random, data: bytes) -> bytes:
    """The header changed: sizes, shapes, dtypes, offsets that overlap or lie outside, a header longer than the file."""
    (size,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    how = rng.randrange(8)
    if how == 0:
        header[name]["shape"] = [rng.choice(_SIZES) for _ in range(rng.randrange(4))]
    elif how == 1:
        header[name]["data_offsets"] = [rng.choice(_SIZES), rng.choice(_SIZES)]
    elif how == 2:
        header[name] = header[other]  # bytes that lie in two tensors
    elif how == 3:
        header[name]["dtype"] = rng.choice(("F64", "BF16", "I8", "F8_E4M3", "X", 3, None))
    elif how == 4:
        del header[name]
    elif how == 5:
        body = odd.damaged(rng, body)
    elif how == 6:
        header = odd.changed(rng, header)
    packed = json.dumps(header).encode("utf-8", "replace")
    length = rng.choice(_SIZES) & 2**64 - 1 if how == 7 else len(packed)
    return struct.pack("<Q", length) + packed + body
