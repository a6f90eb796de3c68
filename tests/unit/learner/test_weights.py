"""What the learner has published: versions, snapshots that never change, bytes over tensor borders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Mismatch, NotFound, Unavailable
from services.learner.weights import Layout, PublishedWeights, selected
from services.models.facts import digest_of, tensor_bytes
from services.models.manifest import Version, entries_of, whole_digest
from services.models.tensor_folder import TensorFolder


def fresh_state() -> dict[str, torch.Tensor]:
    """Tensors of 24, 10 and 4 bytes."""
    return {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.arange(5, dtype=torch.bfloat16),
        "c": torch.ones(2, dtype=torch.float16),
    }


@pytest.fixture
def published() -> PublishedWeights:
    return PublishedWeights(tokenizer_fingerprint="f" * 64)


def test_before_the_first_there_is_nothing(published: PublishedWeights) -> None:
    """Asked too early, the answer is: not yet."""
    with pytest.raises(Unavailable, match="no weights are published yet"):
        published.newest()


def test_the_first_version_is_the_digest_of_its_bytes(published: PublishedWeights) -> None:
    """Epoch and step as told, the digest over all entries, the learner's tokenizer in the manifest."""
    version, changed = published.publish(1, 0, fresh_state())
    assert changed
    assert version == Version(1, 0, whole_digest(entries_of(fresh_state())))
    manifest = published.newest().manifest
    assert (manifest.version, manifest.tokenizer_fingerprint) == (version, "f" * 64)


def test_the_same_bytes_keep_their_version(published: PublishedWeights) -> None:
    """A step that changed nothing publishes nothing; a later change is a new version of its own step."""
    state = fresh_state()
    first, _ = published.publish(1, 0, state)
    assert published.publish(1, 1, {name: value.clone() for name, value in state.items()}) == (first, False)
    state["b"] += 1
    second, changed = published.publish(1, 2, state)
    assert changed
    assert (second.epoch, second.step) == (1, 2)
    assert second.digest != first.digest


def test_a_new_epoch_publishes_the_same_bytes_anew(published: PublishedWeights) -> None:
    """After a restart readers must hear of the new epoch, though no byte differs."""
    first, _ = published.publish(1, 5, fresh_state())
    second, changed = published.publish(2, 5, fresh_state())
    assert changed
    assert second == Version(2, 5, first.digest)


def test_a_snapshot_does_not_change_with_the_model(published: PublishedWeights) -> None:
    """Updates in place after publishing reach neither bytes nor digests of what was published."""
    state = fresh_state()
    version, _ = published.publish(1, 0, state)
    for value in state.values():
        value.add_(1)
    snapshot = published.get(version)
    assert whole_digest(entries_of(snapshot.tensors)) == version.digest
    for name, value in fresh_state().items():
        assert torch.equal(snapshot.tensors[name], value)
    published.publish(1, 1, state)
    assert torch.equal(published.get(version).tensors["a"], fresh_state()["a"])
    assert torch.equal(published.newest().tensors["a"], fresh_state()["a"] + 1)


def test_what_did_not_change_is_shared(published: PublishedWeights) -> None:
    """An unchanged tensor is not copied again; a changed one is."""
    state = fresh_state()
    published.publish(1, 0, state)
    before = published.newest().tensors
    state["b"] += 1
    published.publish(1, 1, state)
    after = published.newest().tensors
    assert after["a"] is before["a"]
    assert after["b"] is not before["b"]


def test_frozen_tensors_are_hashed_once(published: PublishedWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are hashed for the first version, the frozen ones never again."""
    hashed: list[int] = []
    real = digest_of

    def counted(tensor: torch.Tensor) -> bytes:
        hashed.append(tensor.numel())
        return real(tensor)

    monkeypatch.setattr("services.models.manifest.digest_of", counted)
    state = fresh_state()
    published.publish(1, 0, state, frozen=frozenset(("a", "c")))
    assert hashed == [6, 5, 2]
    state["b"] += 1
    version, _ = published.publish(1, 1, state, frozen=frozenset(("a", "c")))
    assert hashed == [6, 5, 2, 5]
    assert version.digest == whole_digest(entries_of(state))


def test_old_versions_go(published: PublishedWeights) -> None:
    """Two are kept; who asks for an older one is told, not given another."""
    versions = []
    state = fresh_state()
    for step in range(3):
        state["c"] += 1
        versions.append(published.publish(1, step, state)[0])
    assert published.get(versions[1]).manifest.version == versions[1]
    assert published.newest().manifest.version == versions[2]
    with pytest.raises(Mismatch, match=r"weights of epoch 1, step 0 are not here \(any more\)"):
        published.get(versions[0])


def test_names_are_selected_in_manifest_order(published: PublishedWeights) -> None:
    """Whatever the order asked in; none means all; an unknown name is refused."""
    published.publish(1, 0, fresh_state())
    snapshot = published.newest()
    assert [entry.name for entry in selected(snapshot, ["c", "a"])] == ["a", "c"]
    assert [entry.name for entry in selected(snapshot, [])] == ["a", "b", "c"]
    with pytest.raises(NotFound, match="the manifest has no tensor nope"):
        selected(snapshot, ["a", "nope"])


@given(st.integers(0, 38), st.integers(1, 50), st.sets(st.sampled_from("abc")))
def test_chunks_are_slices_of_the_whole(offset: int, size: int, names: set[str]) -> None:
    """Any piece, across any tensor borders, is that piece of all bytes in manifest order."""
    published = PublishedWeights(tokenizer_fingerprint="")
    published.publish(1, 0, fresh_state())
    snapshot = published.newest()
    entries = selected(snapshot, sorted(names))
    whole = b"".join(bytes(tensor_bytes(snapshot.tensors[entry.name])) for entry in entries)
    layout = Layout(snapshot, entries)
    assert layout.total == len(whole)
    assert layout.chunk(offset, size) == whole[offset : offset + size]


def test_a_chunk_touches_the_tensors_that_it_lies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all before it: a model of thousands of tensors is sent in thousands of chunks."""
    published = PublishedWeights(tokenizer_fingerprint="")
    state = {f"t{at:03}": torch.full((2,), float(at)) for at in range(200)}
    published.publish(1, 0, state | {"empty": torch.zeros(0)})
    snapshot = published.newest()
    layout = Layout(snapshot, snapshot.manifest.tensors)
    touched: list[int] = []
    real = tensor_bytes

    def counted(tensor: torch.Tensor) -> memoryview:
        touched.append(tensor.numel())
        return real(tensor)

    monkeypatch.setattr("services.models.snapshots.tensor_bytes", counted)
    assert layout.chunk(8 * 150 + 4, 8) == bytes(real(state["t150"]))[4:] + bytes(real(state["t151"]))[:4]
    assert touched == [2, 2]
    assert layout.chunk(layout.total, 8) == b""


def test_versions_lie_in_the_shared_folder(tmp_path: Path) -> None:
    """Each tensor of the kept versions is a file, and no other; bytes, chunks and later updates are as with copies."""
    path = tmp_path / "folder"
    published = PublishedWeights(tokenizer_fingerprint="", folder=TensorFolder(path))
    copied, state, versions = PublishedWeights(tokenizer_fingerprint=""), fresh_state(), []
    for step in range(4):
        state["b"] += 1
        versions.append(published.publish(1, step, state, frozen=frozenset(("a",)))[0])
        copied.publish(1, step, state)
        published.settled()
        entries = [entry for kept in published.kept() for entry in kept.manifest.tensors]
        assert {each.name for each in path.iterdir()} == {entry.digest.hex() for entry in entries}
        assert len(set(path.iterdir())) == 3 + (step > 0)
    state["b"] += 1
    assert published.newest().manifest == copied.newest().manifest
    for snapshot in (published.get(versions[2]), published.newest()):
        assert whole_digest(entries_of(snapshot.tensors)) == snapshot.manifest.version.digest
    here, there = (
        Layout(store.newest(), store.newest().manifest.tensors).chunk(3, 30) for store in (published, copied)
    )
    assert here == there
    here, there = (store._deltas[versions[3].digest][1].result() for store in (published, copied))
    assert here == there
    published.close()
    assert not path.exists()
    assert whole_digest(entries_of(published.newest().tensors)) == versions[3].digest


def test_a_learner_that_comes_back_writes_anew(tmp_path: Path) -> None:
    """After kill -9 files may be there, wrong ones too: the next learner trusts none of them."""
    path, killed = tmp_path / "folder", TensorFolder(tmp_path / "folder")
    first, _ = PublishedWeights(tokenizer_fingerprint="", folder=killed).publish(1, 3, fresh_state())
    wrong = path / entries_of(fresh_state())[0].digest.hex()
    wrong.write_bytes(bytes(24))
    killed._let_go()  # as the kernel does for a process that dies
    again = PublishedWeights(tokenizer_fingerprint="", folder=TensorFolder(path))
    second, changed = again.publish(2, 3, fresh_state())
    assert changed
    assert second == Version(2, 3, first.digest)
    assert wrong.read_bytes() == bytes(tensor_bytes(fresh_state()["a"]))
    again.close()


def test_no_folder_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Where there cannot be one, what is published is copied as ever."""
    published = PublishedWeights(tokenizer_fingerprint="", folder=TensorFolder(tmp_path / "no" / "parent"))
    state = fresh_state()
    version, _ = published.publish(1, 0, state)
    state["a"] += 1
    published.publish(1, 1, state)
    assert torch.equal(published.get(version).tensors["a"], fresh_state()["a"])
    published.close()
