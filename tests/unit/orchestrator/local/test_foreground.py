"""A run in a process of its own, and ending it from another."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from orchestrator.local import foreground
from orchestrator.local.layout import RunLayout
from services.common.errors import Expired, Unavailable
from tests.fakes.processes import is_running

# Notes its process id, and what ends it.
PROGRAM = """
import os, pathlib, signal, sys, time
file = pathlib.Path(sys.argv[1])
def drain(*_):
    file.with_name("drained").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
file.with_name("writing").write_text(str(os.getpid()))
file.with_name("writing").rename(file)
time.sleep(600)
"""


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    return RunLayout.prepare(tmp_path / "run")


@pytest.mark.parametrize("error", [KeyboardInterrupt, Expired])
def test_a_detached_run_that_was_not_announced_is_ended(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Ctrl-C, or the time limit, while it comes up: it drains like one that `down` ends, and nothing stays."""
    noted = layout.root / "pid"
    monkeypatch.setattr(foreground, "PROGRAM", ("-c", PROGRAM, str(noted)))

    def look(*_: object) -> bool:
        if noted.exists():
            raise error
        return False

    monkeypatch.setattr(foreground, "_all_serve", look)
    with pytest.raises(error):
        foreground.detach(layout, [])
    assert (layout.root / "drained").exists()
    assert not is_running(int(noted.read_text()))


def test_a_supervisor_that_just_starts_is_not_signalled(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock and has not said who it is: the caller is told to ask again, and no 0 is signalled."""
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *told: signalled.append(told))
    with layout.lock_file.open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        assert layout.supervisor_pid() == 0
        with pytest.raises(Unavailable, match="just starting"):
            foreground.down(layout)
    assert signalled == []
