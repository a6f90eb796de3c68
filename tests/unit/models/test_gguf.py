"""GGUF files: found without importing, converted once, refused in one line when they are none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import InvalidInput, NotFound
from services.models import gguf
from services.models.loading import resolve
from services.models.logprobs import completion_logprobs
from tests.fakes.gguf_files import write_gguf
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from, random_pairs


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_not_a_gguf(tmp_path: Path, cache: Path) -> None:
    """A file that does not begin as one, and one that begins so and goes on as nonsense: one line, no leftovers."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(InvalidInput, match=r"model\.gguf: not a GGUF file \(it does not begin with"):
        resolve(str(path))
    path.write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(InvalidInput, match=r"model\.gguf: not a GGUF model that can be read \(") as caught:
        resolve(str(path))
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_an_empty_file(tmp_path: Path) -> None:
    """So is a file of nothing."""
    path = tmp_path / "model.gguf"
    path.touch()
    with pytest.raises(InvalidInput, match="not a GGUF file"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("method", "value", "told"),
    [
        ("add_embedding_length", 2**23, "hidden_size times vocab_size is more than the numbers"),
        ("add_feed_forward_length", 2**23, "hidden_size times intermediate_size is more than the numbers"),
        ("add_block_count", 2**20, "num_hidden_layers is more than the tensors"),
        ("add_key_length", 2**12, "num_attention_heads times head_dim times hidden_size is more than"),
        ("add_context_length", 2**31, "max_position_embeddings is more than tokens that no model reads"),
    ],
)
def test_metadata_of_a_larger_model_than_the_tensors(
    tmp_path: Path, method: str, value: int, told: str
) -> None:
    """A few bytes made transformers take gigabytes: refused before anything is built."""
    path = tmp_path / "model.gguf"
    write_gguf(path, make_tiny_causal(tmp_path / "tiny", layers=1, width=8), {method: value})
    with pytest.raises(InvalidInput, match=told):
        resolve(str(path))


@pytest.mark.parametrize("name", ["no-such-package", "no.such.package", "", "../x"])
def test_a_package_that_is_not_there(name: str) -> None:
    """The answer is the command that would bring it."""
    with pytest.raises(NotFound, match=r"pip install --no-deps") as caught:
        resolve(f"package:{name}")
    assert str(caught.value).endswith(f"pip install --no-deps {name}")


def test_a_packages_file_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that would fail on import still has its file; a dash in the name is an underscore on disk."""
    folder = tmp_path / "carries_data"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "some.gguf").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gguf.package_file("carries-data", "*.gguf") == folder / "some.gguf"
    assert "carries_data" not in sys.modules


def test_a_real_file_is_converted_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model written as GGUF comes back as a folder of bfloat16 safetensors with the same log-probs."""
    original = make_tiny_causal(tmp_path / "tiny", extra_tokens=("ab", "<|endoftext|>"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, original)
    folder = Path(resolve(str(path)))
    assert folder.parent == cache
    loaded = loaded_from(folder)
    rounded = loaded_from(original, "bfloat16")
    rounded.model.to(torch.float32)
    pairs = random_pairs(4)
    for one, two in zip(
        completion_logprobs(loaded.model, pairs, temperature=1.0, token_budget=99),
        completion_logprobs(rounded.model, pairs, temperature=1.0, token_budget=99),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-5, rtol=0)
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
    assert resolve(str(path)) == str(folder)
    assert [item.name for item in cache.iterdir()] == [folder.name]
