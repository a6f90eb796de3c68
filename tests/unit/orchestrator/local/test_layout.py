"""A run's folder: who may use it."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from orchestrator.local.layout import RunLayout, SupervisorLock, find_run
from services.common.errors import AlreadyExists, NotFound, UserError


def test_fresh_folder_is_made(tmp_path: Path) -> None:
    """A folder that is not there is made, with a uid that stays."""
    layout = RunLayout.prepare(tmp_path / "runs" / "my run")
    assert layout.logs.is_dir()
    assert layout.queue.is_dir()
    assert layout.run_uid() == layout.run_uid()
    assert layout.run_uid().startswith("my_run-")
    assert layout.config.stat().st_mode & 0o077 == 0


def test_used_folder_is_refused(tmp_path: Path) -> None:
    """A used folder needs --resume or --overwrite."""
    RunLayout.prepare(tmp_path / "run")
    with pytest.raises(
        AlreadyExists, match=r"is used already: --resume continues it, --overwrite empties it"
    ):
        RunLayout.prepare(tmp_path / "run")


def test_resume_keeps_and_overwrite_empties(tmp_path: Path) -> None:
    """Resuming finds the run's uid and files; overwriting starts with neither."""
    layout = RunLayout.prepare(tmp_path / "run")
    uid = layout.run_uid()
    (layout.root / "metrics.jsonl").write_text("{}\n")
    assert RunLayout.prepare(layout.root, resume=True).run_uid() == uid
    assert layout.metrics_file.exists()
    assert RunLayout.prepare(layout.root, overwrite=True).run_uid() != uid
    assert not layout.metrics_file.exists()


def test_only_a_run_is_ever_emptied(tmp_path: Path) -> None:
    """--overwrite on a folder that is no run's deletes nothing."""
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "run.toml").write_text("steps = 3")
    with pytest.raises(UserError, match="not a run's folder: it is left as it is"):
        RunLayout.prepare(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_nothing_to_resume(tmp_path: Path) -> None:
    """--resume needs a run; both flags at once contradict each other; a file is no folder."""
    with pytest.raises(NotFound, match="holds no run to resume"):
        RunLayout.prepare(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="exclude each other"):
        RunLayout.prepare(tmp_path / "run", resume=True, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        RunLayout.prepare(tmp_path / "file")


def test_folder_of_a_living_run_is_refused(tmp_path: Path) -> None:
    """Not even --overwrite touches a run whose supervisor lives, and a second supervisor is refused."""
    layout = RunLayout.prepare(tmp_path / "run")
    assert layout.supervisor_pid() is None
    with SupervisorLock(layout):
        assert layout.supervisor_pid() is not None
        with pytest.raises(AlreadyExists, match="a run is going on"):
            RunLayout.prepare(layout.root, overwrite=True)
        with pytest.raises(AlreadyExists, match="another supervisor"), SupervisorLock(layout):
            pass
    assert layout.supervisor_pid() is None


def test_who_looks_is_not_taken_for_a_supervisor(tmp_path: Path) -> None:
    """Two may look at once, a supervisor waits for them to have looked, and one that has ended leaves no number."""
    layout = RunLayout.prepare(tmp_path / "run")
    with SupervisorLock(layout):
        assert layout.lock_file.read_text() == str(os.getpid())
    assert layout.lock_file.read_text() == ""
    layout.lock_file.write_text("4711")  # of one that was killed
    looking = layout.lock_file.open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert layout.supervisor_pid() is None
    done = threading.Timer(0.1, looking.close)
    done.start()
    with SupervisorLock(layout):
        assert layout.supervisor_pid() == os.getpid()
    done.join()


def test_emptying_a_folder_leaves_its_lock(tmp_path: Path) -> None:
    """Whoever waits for the lock waits for the file that the next supervisor locks too."""
    layout = RunLayout.prepare(tmp_path / "run")
    with SupervisorLock(layout):
        pass
    before = layout.lock_file.stat().st_ino
    (layout.root / "summary.json").write_text("{}")
    RunLayout.prepare(layout.root, overwrite=True)
    assert layout.lock_file.stat().st_ino == before
    assert not layout.summary_file.exists()


def test_find_run(tmp_path: Path) -> None:
    """Without a name the living run is meant, else the latest; an unknown folder is told."""
    with pytest.raises(NotFound, match="no run in"):
        find_run(None, tmp_path / "runs")
    with pytest.raises(NotFound, match="is not a run's folder"):
        find_run(tmp_path / "nowhere")
    first = RunLayout.prepare(tmp_path / "runs" / "first")
    RunLayout.prepare(tmp_path / "runs" / "second")
    assert find_run(first.root).root == first.root
    with SupervisorLock(first):
        assert find_run(None, tmp_path / "runs").root == first.root
