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


def write_gguf(path: Path, folder: Path) -> None:
    """The tiny model of this folder as a GGUF in float32, with a tokenizer of its own bytes."""
    from gguf import GGUFWriter, TokenType

    loaded = loaded_from(folder)
    config, state = loaded.model.config, loaded.model.state_dict()
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    words = sorted(loaded.tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([TokenType.CONTROL if at < 7 else TokenType.NORMAL for at in range(len(words))])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            value = state[f"model.layers.{layer}.{ours}.weight"].numpy()
            if theirs in ("attn_q", "attn_k"):
                # llama.cpp keeps the two halves of each rotary pair side by side.
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                rows, width = value.shape
                value = value.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
