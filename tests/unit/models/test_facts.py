"""Fingerprints and digests: equal for equal things, different for different ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Gemma3Config, Gemma3TextConfig, Phi3Config

from services.models.facts import (
    chat_template_digest,
    context_of,
    digest_of,
    file_digest,
    language_config,
    model_digest,
    positions_of,
    tensor_bytes,
    tokenizer_fingerprint,
)
from tests.fakes.tiny_models import tiny_tokenizer


def test_how_a_tokenizer_was_used_does_not_matter() -> None:
    """Padding and truncation, last used or set, leave the fingerprint as it is."""
    tokenizer = tiny_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    tokenizer.padding_side = "left"
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(tiny_tokenizer()) == before


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    """A checkpoint's tokenizer is the one it was made with; the chat template is not part of what ids mean."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
    assert chat_template_digest(again) == chat_template_digest(tokenizer) != ""
    plain = tiny_tokenizer(chat_template=False)
    assert tokenizer_fingerprint(plain) == tokenizer_fingerprint(tokenizer)
    assert chat_template_digest(plain) == ""


def test_another_vocabulary_or_end_is_another_tokenizer() -> None:
    """One more token, or another end token, changes the fingerprint."""
    fingerprints = {tokenizer_fingerprint(tiny_tokenizer())}
    fingerprints.add(tokenizer_fingerprint(tiny_tokenizer(extra=("<more>",))))
    other_end = tiny_tokenizer()
    other_end.eos_token = "<|user|>"  # noqa: S105 - a token of text
    fingerprints.add(tokenizer_fingerprint(other_end))
    assert len(fingerprints) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_are_the_tensors_own_little_endian(dtype: torch.dtype) -> None:
    """Row by row, whatever the strides; bfloat16 1.0 is 80 3f."""
    tensor = torch.arange(6, dtype=dtype).reshape(2, 3)
    expected = b"".join(bytes(value.view(torch.uint8).numpy()) for value in tensor.reshape(-1, 1))
    assert bytes(tensor_bytes(tensor)) == expected
    assert bytes(tensor_bytes(tensor.T)) == bytes(tensor_bytes(tensor.T.contiguous())) != expected
    assert bytes(tensor_bytes(torch.ones(1, dtype=torch.bfloat16))) == b"\x80\x3f"


def test_digests_see_one_bit_a_name_and_a_shape() -> None:
    """Order of the names does not matter; everything else does."""
    one, two = torch.zeros(4), torch.ones(2)
    digests = {
        model_digest({"a": one, "b": two}),
        model_digest({"a": one, "c": two}),
        model_digest({"a": one.reshape(2, 2), "b": two}),
        model_digest({"a": one.bfloat16(), "b": two}),
        model_digest({"a": -one, "b": two}),
        model_digest({"a": two, "b": one}),
    }
    assert len(digests) == 6
    assert model_digest({"b": two, "a": one}) == model_digest({"a": one, "b": two})
    assert digest_of(one) != digest_of(-one)


def test_files_are_digested_in_the_order_given(tmp_path: Path) -> None:
    """The digest is SHA-256 of their contents, one after the other."""
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"ab")
    two.write_bytes(b"c")
    # sha256 of "abc", from FIPS 180-2.
    assert file_digest([one, two]) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest([two, one]) != file_digest([one, two])


def test_longrope_ends_before_its_other_factors() -> None:
    """A row of more tokens would turn those in the cache, and beside it in a batch, by other factors."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    small = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64}
    long = Phi3Config(original_max_position_embeddings=24, rope_parameters=rope, **small)
    assert (positions_of(long), context_of(long)) == (64, 24)
    assert context_of(Phi3Config(**small)) == 64


def test_a_model_that_sees_as_well_has_a_part_for_language() -> None:
    """Its context is that part's."""
    sees = Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=99))
    assert language_config(sees) is sees.text_config
    assert language_config(sees.text_config) is sees.text_config
    assert positions_of(sees) == context_of(sees) == 99
