"""How much memory processes take, and files in memory beside them."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.local import memory
from orchestrator.local.memory import MemoryMeter, anonymous_bytes, folder_bytes, pss_bytes, tree_bytes
from orchestrator.local.shared_memory import SHARED_MEMORY

SIZE = 64 << 20


# Maps the file that it is told and reads every page, says so, and waits: small, so that its own memory hardly moves.
READER = """
import mmap, sys
with open(sys.stdin.readline().strip(), "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print(len(mapped[::4096]), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="files in memory lie elsewhere")
def test_files_in_memory_count_once(tmp_path: Path) -> None:
    """Mapped or not, a file in memory is in the sum, and once."""
    folder = SHARED_MEMORY / f"memory-{os.getpid()}"
    folder.mkdir()
    file, reader = folder / "file", [sys.executable, "-S", "-c", READER]
    with subprocess.Popen(reader, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            before = tree_bytes(child.pid, folder)
            piece = bytes(1 << 20)
            with file.open("wb") as written:
                for _ in range(SIZE // len(piece)):
                    written.write(piece)
            assert folder_bytes(folder) == SIZE
            beside = tree_bytes(child.pid, folder) - before
            child.stdin.write(f"{file}\n")
            child.stdin.flush()
            assert int(child.stdout.readline()) == SIZE // 4096
            assert pss_bytes(child.pid)[1] >= SIZE
            within = tree_bytes(child.pid, folder) - before
        finally:
            child.kill()
            file.unlink(missing_ok=True)
            folder.rmdir()
    for grown in (beside, within):
        assert 0.8 * SIZE <= grown <= 1.5 * SIZE
    assert folder_bytes(tmp_path / "none") == 0


def test_the_meter_walks_where_counters_tell_of_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look, a change of 64 MiB either way, and a minute later; in between what it knew stays."""
    walks, clock, anonymous = [], [0.0], [100 << 20]
    monkeypatch.setattr(memory, "tree", lambda _: [1])
    monkeypatch.setattr(memory, "anonymous_bytes", lambda _: anonymous[0])
    monkeypatch.setattr(memory, "tree_bytes", lambda *_: walks.append(anonymous[0]) or anonymous[0] + 1)
    monkeypatch.setattr(memory.time, "monotonic", lambda: clock[0])
    meter = MemoryMeter()
    for mib, seconds in ((100, 0), (163, 1), (164, 2), (101, 3), (100, 4), (100, 63), (100, 64)):
        anonymous[0], clock[0] = mib << 20, float(seconds)
        meter.sample()
    assert [walk >> 20 for walk in walks] == [100, 164, 100, 100]
    assert (meter.bytes_now, meter.bytes_peak) == ((100 << 20) + 1, (164 << 20) + 1)


def test_anonymous_memory_is_counted() -> None:
    """What this process takes is in the counter, without a walk."""
    before = anonymous_bytes(os.getpid())
    taken = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    taken.write(b"x" * (SIZE // 2))
    assert anonymous_bytes(os.getpid()) - before >= SIZE // 2
    taken.close()
    assert anonymous_bytes(2**22 + 1) == 0
