"""The command line of keys files, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.common.access.commands import run
from services.common.access.keys import KEY_PATTERN, hash_of, id_of
from services.common.access.keys_file import read_keys

ROOT = Path(__file__).resolve().parents[4]


def keys(*arguments: str) -> int:
    return run(list(arguments))


def test_new_prints_the_key_once_and_keeps_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """stdout is the key and nothing else, so that a script can take it; the file holds no key."""
    file = tmp_path / "keys.toml"
    options = ["--scope", "score", "--scope", "admin", "--model", "hh", "--rows-per-minute", "60"]
    assert keys("new", "trainer", "--file", str(file), *options, "--expires-days", "30") == 0
    captured = capsys.readouterr()
    key = captured.out.strip()
    assert KEY_PATTERN.fullmatch(key)
    assert key not in captured.err + file.read_text()
    known = read_keys(file).table().key(key)
    assert known is not None
    assert known.expires is not None
    assert known.identity.scopes == {"score", "admin"}
    assert known.identity.models == {"hh"}
    assert known.identity.rows_per_minute == 60


def test_list_and_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list tells two keys of a name apart by ids; revoke takes one of them, or all."""
    file = str(tmp_path / "keys.toml")
    made = []
    for _ in range(2):
        keys("new", "trainer", "--file", file)
        made.append(capsys.readouterr().out.strip())
    ids = [id_of(hash_of(key)) for key in made]
    assert keys("list", "--file", file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(key_id in line for key_id, line in zip(ids, lines[1:], strict=True))
    assert keys("revoke", "trainer", "--file", file, "--id", ids[0]) == 0
    assert [id_of(each.hash) for each in read_keys(Path(file)).keys] == ids[1:]
    assert keys("revoke", "trainer", "--file", file) == 0
    assert read_keys(Path(file)).keys == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "a b"], "keys: name: "),
        (["new", "a", "--scope", "scoer"], "keys: scopes: "),
        (["new", "a", "--rows-per-minute", "-1"], "keys: rows-per-minute: "),
        (["revoke", "nobody"], "keys: there is no key nobody"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Exit code 2, one line on stderr, no file left behind."""
    assert keys(*arguments, "--file", str(tmp_path / "keys.toml")) == 2
    error = capsys.readouterr().err
    assert error.startswith(words)
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_program_runs_and_its_help_is_light() -> None:
    """python -m services.common.access answers --help without pydantic, grpc or numpy."""
    help_text = subprocess.run(
        [sys.executable, "-m", "services.common.access", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert help_text.returncode == 0
    assert "revoke" in help_text.stdout
    code = (
        "import sys, services.common.access.commands\n"
        "heavy = {'grpc', 'pydantic', 'numpy', 'structlog'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
