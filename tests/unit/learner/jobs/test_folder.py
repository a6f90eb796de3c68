"""The folder that a job writes: whose it may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import AlreadyExists, InvalidInput
from services.learner.jobs.folder import prepared


def test_only_what_is_the_jobs_own_may_be_replaced(tmp_path: Path) -> None:
    """No folder, an empty one and one with the job's mark; a file and somebody's folder are refused and stay."""
    mine, theirs, file = tmp_path / "mine", tmp_path / "theirs", tmp_path / "file"
    for folder, name in ((mine, "mark.json"), (theirs, "thesis.txt")):
        folder.mkdir()
        (folder / name).write_text("x")
    file.write_text("x")
    (tmp_path / "empty").mkdir()
    for free in (tmp_path / "deep" / "new", tmp_path / "empty", mine):
        assert prepared(free, "mark.json") == free
    assert (tmp_path / "deep").is_dir()
    for used in (theirs, file, tmp_path):
        with pytest.raises(AlreadyExists, match="name another folder"):
            prepared(used, "mark.json")
    assert (theirs / "thesis.txt").is_file()


def test_another_jobs_folder_and_a_report_that_is_one_are_refused(tmp_path: Path) -> None:
    """A reward model has the report that an sft job goes by, and is none of its; both are told before the work."""
    folder = tmp_path / "reward"
    folder.mkdir()
    for name in ("training.json", "reward.json"):
        (folder / name).write_text("{}")
    with pytest.raises(AlreadyExists, match="not this job's"):
        prepared(folder, "training.json", foreign="reward.json")
    assert prepared(folder, "reward.json") == folder
    with pytest.raises(AlreadyExists, match=f"--report {folder}: a folder has that name"):
        prepared(tmp_path / "new", "training.json", folder)


def test_a_mount_point_is_refused_before_the_work() -> None:
    """Nothing can be renamed into its place, which would be found out when the training is done."""
    with pytest.raises(
        InvalidInput, match="/proc is a mount point, which cannot be replaced: name a folder in it"
    ):
        prepared(Path("/proc"), "mark.json")


def test_a_relative_folder_and_the_reports_are_made_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "." has a name of its own, and a report may lie where nothing is yet."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert prepared(Path(), "mark.json", Path("reports/one.json")) == tmp_path / "here"
    assert (tmp_path / "here" / "reports").is_dir()
