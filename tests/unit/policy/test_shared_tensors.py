"""What a shared folder has of some tensors: verified ones, and the count of those that are not what they are named."""

from __future__ import annotations

from pathlib import Path

import structlog
import torch

from services.models.manifest import entries_of
from services.models.tensor_folder import TensorFolder
from services.policy.shared_tensors import shared_tensors

STATE = {str(at): torch.full((3,), float(at)) for at in range(6)}
ENTRIES = entries_of(STATE)


async def test_right_missing_and_wrong_files(tmp_path: Path) -> None:
    """Of six tensors one has no file, one has a wrong bit, one is cut: the other three are brought, two are told."""
    path = tmp_path / "folder"
    folder = TensorFolder(path)
    folder.begin(72)
    files = {}
    for entry in ENTRIES:
        assert folder.put(entry, STATE[entry.name]) is not None
        files[entry.name] = path / entry.digest.hex()
    files["1"].unlink()
    files["2"].write_bytes(bytes(12))
    files["4"].write_bytes(bytes(3))
    with structlog.testing.capture_logs() as logs:
        found = await shared_tensors(path, ENTRIES)
    assert sorted(found.tensors) == ["0", "3", "5"]
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in found.tensors.items())
    assert (found.size, len(found.wrong)) == (36, 2)
    [told] = logs
    assert (told["event"], told["files"]) == ("shared files are wrong", 2)
    assert told["why"] == "2: the digest of the bytes is not the manifest's"
    folder.close()


async def test_a_folder_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    """As on another machine than the learner's: no error, everything comes by gRPC."""
    found = await shared_tensors(tmp_path / "none", ENTRIES)
    assert (found.tensors, found.size, found.wrong) == ({}, 0, [])
