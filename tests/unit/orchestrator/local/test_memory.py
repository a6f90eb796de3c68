"""How much memory processes take, and files in memory beside them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from orchestrator.local.memory import folder_bytes, pss_bytes, tree_bytes
from orchestrator.local.shared_memory import SHARED_MEMORY

SIZE = 64 << 20


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="files in memory lie elsewhere")
def test_files_in_memory_count_once(tmp_path: Path) -> None:
    """Mapped or not, a file in memory is in the sum, and once."""
    folder = SHARED_MEMORY / f"memory-{os.getpid()}"
    folder.mkdir()
    file = folder / "file"
    try:
        before = tree_bytes(os.getpid(), folder)
        piece = bytes(1 << 20)  # the allocator may keep what is freed: little is
        with file.open("wb") as written:
            for _ in range(SIZE // len(piece)):
                written.write(piece)
        assert folder_bytes(folder) == SIZE
        beside = tree_bytes(os.getpid(), folder) - before
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[::4096] == bytes(SIZE // 4096)  # so that all pages are this process's
            assert pss_bytes(os.getpid())[1] >= SIZE
            within = tree_bytes(os.getpid(), folder) - before
    finally:
        file.unlink(missing_ok=True)
        folder.rmdir()
    for grown in (beside, within):
        assert 0.8 * SIZE <= grown <= 1.5 * SIZE
    assert folder_bytes(tmp_path / "none") == 0
