"""Public data is read from the folder that TRIMTAB_DATA names, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.public_data import HH, data_file


def test_a_file_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path, where it is there."""
    (tmp_path / HH).touch()
    monkeypatch.setenv("TRIMTAB_DATA", str(tmp_path))
    assert data_file("scoring") == tmp_path / HH


@pytest.mark.parametrize("folder", ["", "/no/such/folder"])
def test_a_file_that_is_not_there(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names the file and the variable to set; status 2."""
    monkeypatch.setenv("TRIMTAB_DATA", folder)
    with pytest.raises(SystemExit) as ended:
        data_file("scoring")
    assert ended.value.code == 2
    told = "".join(capsys.readouterr())
    assert HH in told and "set TRIMTAB_DATA to its folder" in told
