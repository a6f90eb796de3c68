"""Tensors as files that others map: the very bytes or none, room given back, and no fault that stops the publisher."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch

from services.common import shared_folder
from services.common.errors import Corrupted
from services.models.manifest import TensorEntry, entries_of, entry_of
from services.models.tensor_folder import FAILURES, ROOM, TensorFolder, brought

STATE = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.ones(2, dtype=torch.float16),
}
SIZE = 38


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder"


@pytest.fixture
def folder(path: Path) -> Iterator[TensorFolder]:
    folder = TensorFolder(path)
    folder.begin(SIZE)
    yield folder
    folder.close()


def put(folder: TensorFolder, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    return {name: folder.put(entry_of(name, tensor), tensor) for name, tensor in state.items()}


def names(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()}


def named(*entries: TensorEntry) -> set[str]:
    return {entry.digest.hex() for entry in entries}


def test_both_sides_map_the_same_bytes(folder: TensorFolder, path: Path) -> None:
    """Dtype, shape and values of the publisher's mapping and of a reader's are the tensor's."""
    for name, kept in put(folder, STATE).items():
        read = brought(path, entry_of(name, STATE[name]))
        for tensor in (kept, read):
            assert tensor is not None
            assert tensor.dtype == STATE[name].dtype
            assert torch.equal(tensor, STATE[name])
    assert names(path) == named(*entries_of(STATE))


def test_equal_tensors_are_one_file(
    folder: TensorFolder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever name, shape or dtype: the bytes are written once."""
    put(folder, {"one": torch.ones(4)})
    monkeypatch.setattr(shared_folder, "write", None)
    bits = torch.ones(4).view(torch.bfloat16)
    kept = put(folder, {"two": torch.ones(2, 2), "three": bits})
    assert len(names(path)) == 1
    assert torch.equal(kept["two"], torch.ones(2, 2))  # type: ignore[arg-type]
    assert torch.equal(kept["three"], bits)  # type: ignore[arg-type]


def test_a_stray_write_reaches_nobody_else(folder: TensorFolder, path: Path) -> None:
    """Neither from the publisher's side nor from a reader's."""
    kept = put(folder, STATE)["a"]
    read = brought(path, entry_of("a", STATE["a"]))
    assert kept is not None
    assert read is not None
    kept.add_(1)
    assert torch.equal(read, STATE["a"])
    read.add_(2)
    assert torch.equal(brought(path, entry_of("a", STATE["a"])), STATE["a"])  # type: ignore[arg-type]


def test_what_nobody_names_goes_and_mappings_stay(folder: TensorFolder, path: Path) -> None:
    """Files of other digests are unlinked; who has one mapped reads on, also when the folder is gone."""
    put(folder, STATE)
    read = brought(path, entry_of("a", STATE["a"]))
    folder.keep({entry_of("b", STATE["b"]).digest})
    assert names(path) == named(entry_of("b", STATE["b"]))
    assert brought(path, entry_of("a", STATE["a"])) is None
    folder.close()
    assert not path.exists()
    assert torch.equal(read, STATE["a"])  # type: ignore[arg-type]
    folder.begin(SIZE)
    assert set(put(folder, STATE).values()) == {None}


def test_many_tensors_take_no_descriptors(folder: TensorFolder) -> None:
    """A model has hundreds of tensors, a process often 1,024 descriptors."""
    before = len(list(Path("/dev/fd").iterdir()))
    kept = put(folder, {str(at): torch.full((2,), float(at)) for at in range(50)})
    assert None not in kept.values()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_full_folder_is_told_once_and_tried_again(
    folder: TensorFolder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half file stays, the rest of the version is copied, each such version counts; with room it works again."""
    real, before = os.write, FAILURES._value.get()

    def full(file: int, data: memoryview) -> int:
        if len(data) > 4:
            return real(file, data[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                folder.begin(SIZE)
                assert folder.put(entry_of("a", STATE["a"]), STATE["a"]) is None
            assert put(folder, STATE) == dict.fromkeys(STATE)
            assert names(path) == set()
    assert [entry["why"] for entry in logs] == ["No space left on device"]
    assert FAILURES._value.get() == before + 2
    folder.begin(SIZE)
    assert None not in put(folder, STATE).values()


def test_what_cannot_be_mapped_does_not_stay(
    folder: TensorFolder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that no mapping stands for would never be unlinked."""

    def no_memory(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("unable to mmap 24 bytes")

    monkeypatch.setattr(torch, "from_file", no_memory)
    with structlog.testing.capture_logs() as logs:
        assert put(folder, STATE) == dict.fromkeys(STATE)
    assert [entry["why"] for entry in logs] == ["unable to mmap 24 bytes"]
    assert names(path) == set()


def test_without_room_nothing_is_begun(path: Path) -> None:
    """Four times the version must fit before the first; the line says how much that is."""
    folder = TensorFolder(path)
    status = os.statvfs(path.parent)
    with structlog.testing.capture_logs() as logs:
        folder.begin(status.f_blocks * status.f_frsize // ROOM + 2**20)
    assert put(folder, STATE) == dict.fromkeys(STATE)
    assert [entry["event"] for entry in logs] == ["weights are copied instead of shared"]
    assert logs[0]["why"].startswith("it has no room for 4 times ")
    folder.close()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    """The line names it and why; publishing goes on with copies."""
    folder = TensorFolder(tmp_path / "none" / "deeper")
    with structlog.testing.capture_logs() as logs:
        folder.begin(SIZE)
        folder.begin(SIZE)
    assert put(folder, STATE) == dict.fromkeys(STATE)
    folder.keep(set())
    folder.close()
    assert [entry["why"] for entry in logs] == ["No such file or directory"]


def test_a_folder_that_was_removed_comes_back(folder: TensorFolder, path: Path) -> None:
    """Somebody cleans up in the middle: that version is copied, the next one is shared whole."""
    put(folder, STATE)
    for each in path.iterdir():
        each.unlink()
    path.rmdir()
    assert put(folder, {"new": torch.zeros(3)}) == {"new": None}
    folder.begin(SIZE)
    assert None not in put(folder, STATE).values()
    assert names(path) == named(*entries_of(STATE))


def test_wrong_files_are_no_tensors(folder: TensorFolder, path: Path) -> None:
    """A flipped bit, a byte too few: neither is given out."""
    entry = entry_of("a", STATE["a"])
    file = path / entry.digest.hex()
    data = bytearray(STATE["a"].numpy().tobytes())
    data[3] ^= 1
    file.write_bytes(data)
    with pytest.raises(Corrupted, match="a: the digest of the bytes is not the manifest's"):
        brought(path, entry)
    file.write_bytes(data[:-1])
    with pytest.raises(OSError, match="no file of 24 bytes"):
        brought(path, entry)
    empty = torch.zeros(0)
    assert folder.put(entry_of("empty", empty), empty) is None
    assert brought(path, entry_of("empty", empty)) is None
