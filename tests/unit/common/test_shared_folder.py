"""A folder between processes of one user: rights, one publisher, nothing left behind, nothing of a person's touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.common import shared_folder

NAME = "0" * 64


@contextmanager
def taken(path: Path) -> Iterator[int]:
    """The folder, with a publisher."""
    folder = shared_folder.take(path)
    try:
        yield folder
    finally:
        os.close(folder)


def put(folder: int, name: str = NAME, data: bytes = b"bytes") -> None:
    os.close(shared_folder.write(folder, name, memoryview(data)))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_reads(tmp_path: Path) -> None:
    """Whatever the umask is and whatever rights the folder had."""
    path = tmp_path / "folder"
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    before = os.umask(0)
    try:
        with taken(path) as folder:
            put(folder)
    finally:
        os.umask(before)
    assert (mode(path), mode(path / NAME)) == (0o700, 0o600)


def test_leftovers_go_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Whole files and halves of an earlier publisher are removed; a person's file is not, and neither is its folder."""
    path = tmp_path / "folder"
    with taken(path) as folder:
        put(folder)
    (path / f"{NAME}.part").write_bytes(b"half")
    (path / "thesis.tex").write_bytes(b"")
    with taken(path):
        assert [each.name for each in path.iterdir()] == ["thesis.tex"]
    assert not shared_folder.remove(path)
    assert (path / "thesis.tex").exists()
    (path / "thesis.tex").unlink()
    assert shared_folder.remove(path)
    assert not path.exists()


def test_there_is_one_publisher(tmp_path: Path) -> None:
    """A second one is refused, and nobody removes the folder, for as long as the first lives."""
    path = tmp_path / "folder"
    with taken(path) as folder:
        put(folder)
        with pytest.raises(BlockingIOError, match="another process hands files over there"):
            shared_folder.take(path)
        assert not shared_folder.remove(path)
        assert (path / NAME).read_bytes() == b"bytes"
    with taken(path):
        assert not (path / NAME).exists()


@pytest.mark.parametrize("kind", ["file", "link", "nowhere", "other user"])
def test_what_cannot_be_a_folder_of_ours_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a link, no parent, another user's: an OSError, and nothing is changed."""
    path = tmp_path / "folder"
    if kind == "file":
        path.write_bytes(b"mine")
    if kind == "link":
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / NAME).write_bytes(b"mine")
        path.symlink_to(tmp_path / "real")
    if kind == "nowhere":
        path = path / "deeper"
    if kind == "other user":
        path.mkdir()
        (path / NAME).write_bytes(b"mine")
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(OSError, match=r"."):
        shared_folder.take(path)
    assert not shared_folder.remove(path)
    kept = {"file": path, "link": tmp_path / "real" / NAME, "other user": path / NAME}
    assert kind == "nowhere" or kept[kind].read_bytes() == b"mine"


def test_a_reader_opens_what_is_whole_and_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is None; another size, a link, a pipe and another user's file are errors."""
    path = tmp_path / "folder"
    with taken(path) as folder:
        put(folder)
        file = shared_folder.opened(path / NAME, 5)
        assert file is not None
        assert os.read(file, 9) == b"bytes"
        os.close(file)
        assert shared_folder.opened(path / ("1" * 64), 5) is None
        (path / "link").symlink_to(path / NAME)
        os.mkfifo(path / "pipe")
        for name, size in ((NAME, 4), (NAME, 6), ("link", 5), ("pipe", 0)):
            with pytest.raises(OSError, match=r"."):
                shared_folder.opened(path / name, size)
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        with pytest.raises(OSError, match="no file of 5 bytes of this user"):
            shared_folder.opened(path / NAME, 5)
