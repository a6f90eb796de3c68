"""The last epoch on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import StorageFull
from services.learner.checkpoints import storage_errors
from services.learner.epochs import last_epoch, note_epoch


def test_the_last_epoch_is_kept(tmp_path: Path) -> None:
    """Nothing is 0, the last one noted stands, half a file is 0."""
    folder = tmp_path / "run"
    assert last_epoch(folder) == 0
    for epoch in (3, 12):
        note_epoch(folder, epoch)
        assert last_epoch(folder) == epoch
    assert [path.name for path in folder.iterdir()] == ["epoch"]
    (folder / "epoch").write_text("")
    assert last_epoch(folder) == 0


def test_a_limit_on_files_is_a_full_disk(tmp_path: Path) -> None:
    """EFBIG, as Python and as the libraries say it."""
    for error in (OSError(27, "File too large"), RuntimeError("I/O error: File too large (os error 27)")):
        with pytest.raises(StorageFull, match=r"^no room on disk for the file$"), storage_errors("the file"):
            raise error
