"""The folder in memory of a run: one for each, gone with it, however it ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.local import shared_memory
from orchestrator.local.foreground import down
from orchestrator.local.layout import RunLayout
from services.common import shared_folder
from services.common.errors import NotFound


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /dev/shm."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", memory)
    return memory


def left_behind(path: Path) -> None:
    """As a learner leaves it that is killed -9."""
    folder = shared_folder.take(path)
    os.close(shared_folder.write(folder, "0" * 64, memoryview(b"bytes")))
    os.close(folder)


def test_a_machine_without_shared_memory_has_no_folder(memory: Path) -> None:
    """Then weights go by gRPC."""
    assert shared_memory.weights_folder("one-1") == str(memory / "trimtab-one-1")
    memory.rmdir()
    assert shared_memory.weights_folder("one-1") == ""
    shared_memory.remove_dead()


def test_folders_of_dead_runs_go(memory: Path) -> None:
    """Those whose learner lives stay, and so does whatever else lies there."""
    left_behind(memory / "trimtab-dead-1")
    left_behind(memory / "other-1")
    living = shared_folder.take(memory / "trimtab-living-1")
    (memory / "trimtab-notes").mkdir()
    (memory / "trimtab-notes" / "thesis.tex").touch()
    (memory / "trimtab-file").touch()
    shared_memory.remove_dead()
    assert {each.name for each in memory.iterdir()} == {
        "other-1",
        "trimtab-living-1",
        "trimtab-notes",
        "trimtab-file",
    }
    assert (memory / "trimtab-notes" / "thesis.tex").exists()
    os.close(living)
    shared_memory.remove_dead()
    assert not (memory / "trimtab-living-1").exists()


def test_down_cleans_up_after_a_dead_run(memory: Path, tmp_path: Path) -> None:
    """There is nothing to end, but the memory is given back."""
    layout = RunLayout.prepare(tmp_path / "run")
    left_behind(Path(shared_memory.weights_folder(layout.run_uid())))
    with pytest.raises(NotFound, match="nothing runs in"):
        down(layout)
    assert list(memory.iterdir()) == []
