"""Identity of a loaded model: fingerprints and digests that two services compare before they exchange ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blake3 import blake3

if TYPE_CHECKING:
    import torch

Architecture = Literal["causal", "encoder_decoder", "encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What GetInfo answers. Lengths in tokens; digests in hex."""

    name: str
    architecture: Architecture
    tokenizer_fingerprint: str
    chat_template_digest: str
    model_digest: str
    context_length: int
    vocabulary_size: int
    dtype: str


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """BLAKE3 over vocabulary, merges, normalisation and special tokens, hex.

    The chat template is left out: it changes text, not what an id means.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # Padding and truncation are how a caller last used the tokenizer, not what it is.
        state.pop("padding", None)
        state.pop("truncation", None)
    else:
        state = {"vocabulary": tokenizer.get_vocab()}
    state["eos"] = tokenizer.eos_token_id
    return blake3(json.dumps(state, sort_keys=True).encode()).hexdigest()


def chat_template_digest(tokenizer: Any) -> str:
    """BLAKE3 over the chat template, hex; empty when there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ""
    return blake3(json.dumps(template, sort_keys=True).encode()).hexdigest()


def language_config(config: Any) -> Any:
    """The part of a model's configuration that is of language: all of it, but for one that sees or hears as well."""
    nested = getattr(config, "get_text_config", None)
    return config if nested is None else nested()


def positions_of(config: Any) -> int:
    """Tokens for which the model has positions; 0 where none is known, or there is no end."""
    return int(getattr(language_config(config), "max_position_embeddings", 0) or 0)


def context_of(config: Any) -> int:
    """Tokens for which a row has one meaning, 0 as above.

    Longrope (arXiv 2402.13753) takes other factors once a pass has a longer row: what stands in a cache, or beside it
    in a batch, was made with those before.
    """
    rope, most = getattr(language_config(config), "rope_parameters", None) or {}, positions_of(config)
    if rope.get("rope_type") != "longrope":
        return most
    return min(most, int(rope.get("original_max_position_embeddings", most)))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's little-endian bytes, [numel * itemsize], without a copy where it is contiguous on the CPU."""
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def digest_of(tensor: torch.Tensor) -> bytes:
    """BLAKE3 of the tensor's bytes, 32 bytes."""
    return blake3(tensor_bytes(tensor), max_threads=blake3.AUTO).digest()


def model_digest(state: Mapping[str, torch.Tensor]) -> str:
    """BLAKE3 over names, dtypes, shapes and contents, hex. Names in sorted order."""
    whole = blake3()
    for name, tensor in sorted(state.items()):
        whole.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        whole.update(digest_of(tensor))
    return str(whole.hexdigest())


def file_digest(paths: Iterable[Any]) -> str:
    """SHA-256 over files in the order given, hex; names a conversion's cache folder."""
    whole = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:  # noqa: PTH123 - any path-like
            while chunk := stream.read(1 << 22):
                whole.update(chunk)
    return whole.hexdigest()
