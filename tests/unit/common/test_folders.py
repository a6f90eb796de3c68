"""Folders that are written aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.folders import written


def test_what_is_not_whole_never_stands_there(tmp_path: Path) -> None:
    """What was there stays until the new one is written, and for good where it is not to be replaced; nothing is left
    aside."""
    out = tmp_path / "out"
    with written(out) as folder:
        (folder / "one").write_text("1")
    with pytest.raises(RuntimeError), written(out, replace=True) as folder:
        (folder / "two").write_text("2")
        raise RuntimeError
    assert [path.name for path in out.iterdir()] == ["one"]
    with pytest.raises(OSError, match="not empty"), written(out) as folder:
        (folder / "two").write_text("2")
    assert [path.name for path in out.iterdir()] == ["one"]
    with written(out, replace=True) as folder:
        (folder / "two").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "two"]
