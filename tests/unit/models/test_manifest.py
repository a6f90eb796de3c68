"""Manifests: what they promise of bytes, and that wrong bytes are seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Corrupted, InvalidInput, Mismatch
from services.models.facts import ModelFacts, tensor_bytes
from services.models.loading import serving_state
from services.models.manifest import (
    Manifest,
    TensorEntry,
    Version,
    entries_of,
    verified_in_place,
    whole_digest,
)
from services.models.wire import manifest_message, manifest_of, model_info, version_of
from tests.fakes.tiny_models import make_tiny_causal
from tests.fakes.tiny_runs import loaded_from
from trimtab.common.v1 import common_pb2 as common

STATE = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.ones(1, 1, 2, dtype=torch.float16),
}


def manifest() -> Manifest:
    entries = entries_of(STATE)
    return Manifest(Version(3, 7, whole_digest(entries)), entries, "f" * 64)


def test_a_manifest_goes_over_the_wire_and_back() -> None:
    """Names, dtypes, shapes, digests, order, version and fingerprint; its total is the bytes of all."""
    message = manifest_message(manifest())
    assert manifest_of(message) == manifest()
    assert message.total_bytes == 24 + 10 + 4
    assert [entry.size_bytes for entry in manifest().tensors] == [24, 10, 4]
    assert version_of(message.version) == manifest().version


def test_an_unknown_dtype_is_refused() -> None:
    """Weights in a type that this side does not know are not guessed at."""
    message = manifest_message(manifest())
    message.components[0].tensors[1].dtype = common.DTYPE_INT64
    with pytest.raises(InvalidInput, match="b: the manifest names an unknown dtype 5"):
        manifest_of(message)
    with pytest.raises(Mismatch, match="x: weights of dtype int64 cannot be published"):
        entries_of({"x": torch.ones(2, dtype=torch.int64)})


def verified(entry: TensorEntry, data: bytes | bytearray) -> torch.Tensor:
    return verified_in_place(entry, np.frombuffer(bytearray(data), dtype=np.uint8))


def test_bytes_come_back_as_the_tensor() -> None:
    """Of every dtype and shape."""
    for entry in manifest().tensors:
        tensor = verified(entry, bytes(tensor_bytes(STATE[entry.name])))
        assert tensor.dtype == STATE[entry.name].dtype
        assert torch.equal(tensor, STATE[entry.name])


@given(st.integers(0, 23), st.integers(0, 7))
def test_one_wrong_bit_is_seen(byte: int, bit: int) -> None:
    """Whichever bit is flipped on the way, the tensor is refused."""
    data = bytearray(tensor_bytes(STATE["a"]))
    data[byte] ^= 1 << bit
    with pytest.raises(Corrupted, match="a: the digest of the bytes is not the manifest's"):
        verified(manifest().tensors[0], data)


def test_too_few_or_too_many_bytes_are_seen() -> None:
    """A truncated tensor is refused by its length."""
    data = bytes(tensor_bytes(STATE["a"]))
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(Corrupted, match=f"a: {len(wrong)} bytes came, 24 were promised"):
            verified(manifest().tensors[0], wrong)


def test_the_whole_digest_sees_everything() -> None:
    """Another name, dtype, shape, content or order is another version; the same content is the same one."""
    entry = TensorEntry("a", "float32", (2, 3), b"x" * 32)
    others = [
        TensorEntry("b", "float32", (2, 3), b"x" * 32),
        TensorEntry("a", "bfloat16", (2, 3), b"x" * 32),
        TensorEntry("a", "float32", (3, 2), b"x" * 32),
        TensorEntry("a", "float32", (2, 3), b"y" * 32),
    ]
    digests = {whole_digest((entry,)), *(whole_digest((other,)) for other in others)}
    digests |= {
        whole_digest((entry, others[0])),
        whole_digest((others[0], entry)),
        whole_digest((entry,), "q_heads"),
    }
    assert len(digests) == 8
    assert whole_digest(entries_of(STATE)) == whole_digest(
        entries_of({k: v.clone() for k, v in STATE.items()})
    )


def test_two_services_agree_on_the_version_of_one_model(tmp_path: Path) -> None:
    """Loaded twice, a model has the same digest: a policy and a learner begin with equal bytes."""
    folder = make_tiny_causal(tmp_path / "tiny")
    one, two = (whole_digest(entries_of(serving_state(loaded_from(folder).model))) for _ in range(2))
    assert one == two
    other = serving_state(loaded_from(make_tiny_causal(tmp_path / "other", seed=1)).model)
    assert whole_digest(entries_of(other)) != one


def test_versions_are_ordered_by_epoch_then_step() -> None:
    """A later epoch's earlier step is newer; digests say nothing about order."""
    assert Version(2, 1, "a").at_least(Version(1, 9, "z"))
    assert Version(1, 9, "a").at_least(Version(1, 9, "z"))
    assert not Version(1, 9, "z").at_least(Version(2, 1, "a"))
    assert not Version(1, 8, "z").at_least(Version(1, 9, "a"))


def test_facts_on_the_wire() -> None:
    """GetInfo carries everything that two services compare; a version only where there is one."""
    facts = ModelFacts(
        name="m",
        architecture="encoder",
        tokenizer_fingerprint="t",
        chat_template_digest="c",
        model_digest="d",
        context_length=9,
        vocabulary_size=5,
        dtype="bfloat16",
    )
    info = model_info(facts, Version(1, 2, "x"))
    assert (info.name, info.architecture, info.dtype) == (
        "m",
        common.ARCHITECTURE_ENCODER,
        common.DTYPE_BFLOAT16,
    )
    assert (info.tokenizer_fingerprint, info.chat_template_digest, info.model_digest) == ("t", "c", "d")
    assert (info.context_length, info.vocabulary_size, info.weights_version.step) == (9, 5, 2)
    assert not model_info(facts).HasField("weights_version")


def test_in_place_the_tensor_is_the_buffer() -> None:
    """Without a copy the tensor has the bytes it was given, of the dtype and shape of its entry."""
    for entry in manifest().tensors:
        data = np.frombuffer(bytearray(tensor_bytes(STATE[entry.name])), dtype=np.uint8)
        tensor = verified_in_place(entry, data)
        assert torch.equal(tensor, STATE[entry.name])
        assert tensor.data_ptr() == data.ctypes.data
