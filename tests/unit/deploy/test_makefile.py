"""How `make` comes to an environment, with programs that only say they are Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = """#!/bin/sh
case "$1 $2" in
"-c "*) exit {too_old} ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
"""


def program(path: Path, *, too_old: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PYTHON.format(too_old=int(too_old)))
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    again = tmp_path / ".ci" / "again"
    again.parent.mkdir()
    again.write_text('#!/bin/sh\nexec "$@"\n')
    again.chmod(0o755)
    return tmp_path


def made(folder: Path, python: Path) -> subprocess.CompletedProcess[str]:
    argv = ["make", "-s", ".venv-audit/.ready", f"PYTHON={python}"]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_an_older_python_is_told_in_one_line(folder: Path) -> None:
    """Before pip's pages about packages that want another; so is one that is not there. Nothing is made."""
    for python in (program(folder / "old", too_old=True), folder / "nowhere"):
        done = made(folder, python)
        told = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert told == [f"PYTHON={python}: expected Python 3.11 or newer"]
        assert done.returncode != 0
    assert not (folder / ".venv-audit").exists()


@pytest.mark.parametrize("too_old", [True, False])
def test_an_environment_of_an_older_python_is_made_anew(folder: Path, too_old: bool) -> None:
    """One that will do is kept."""
    beside = program(folder / ".venv-audit" / "bin" / "python", too_old=too_old).with_name("beside")
    beside.touch()
    done = made(folder, program(folder / "new", too_old=False))
    assert done.returncode == 0, done.stderr
    assert beside.exists() != too_old
