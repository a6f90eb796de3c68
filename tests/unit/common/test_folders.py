"""Folders that are written aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.folders import files_written, written


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


def test_what_was_there_comes_back_where_it_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a process that died between the two names, and where the new one cannot take its place."""
    out, before = tmp_path / "out", tmp_path / ".out.before"
    before.mkdir()
    (before / "one").write_text("1")
    with pytest.raises(RuntimeError), written(out, replace=True):
        raise RuntimeError
    assert (out / "one").read_text() == "1"
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.endswith(".writing"):
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="no"), written(out, replace=True) as folder:
        (folder / "two").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "one"]


def test_files_take_their_places_together(tmp_path: Path) -> None:
    """None of them before all are written, and what else is in the folder stays; nothing is left aside."""
    out = tmp_path / "made" / "out"
    with files_written(out) as folder:
        (folder / "one").write_text("1")
        (folder / "two").write_text("1")
        assert not out.exists()
    (out / "own").write_text("mine")
    with pytest.raises(RuntimeError), files_written(out) as folder:
        (folder / "one").write_text("2")
        raise RuntimeError
    with files_written(out) as folder:
        (folder / "two").write_text("2")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"one": "1", "two": "2", "own": "mine"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
