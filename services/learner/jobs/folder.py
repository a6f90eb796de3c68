"""Owns which folder a job may write, and its report: nobody's files are lost in its place.

A job's own folder, told by a file that only the job writes, is replaced; any other that has something in it is refused,
before the hours of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.common.errors import AlreadyExists
from services.common.folders import check_place

REPORT_FILE = "training.json"


def prepared(out: Path, mark: str, report: Path | None = None, *, foreign: str = "") -> Path:
    """The folder's whole path, its parent there, and the report's; OSError where they cannot be.

    mark: a file that a folder of this job has; foreign: one that only another job's has, beside it. Raises
    AlreadyExists for what is not the job's to replace, InvalidInput for a mount point.
    """
    whole = out.resolve()
    check_place(whole)
    own = (whole / mark).is_file() and not (foreign and (whole / foreign).exists())
    if whole.exists() and not (whole.is_dir() and (own or not any(whole.iterdir()))):
        raise AlreadyExists(f"{out} is there already and not this job's: name another folder")
    if report is not None and report.is_dir():
        raise AlreadyExists(f"--report {report}: a folder has that name")
    whole.parent.mkdir(parents=True, exist_ok=True)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
    return whole


def write_report(told: Mapping[str, Any], *files: Path | None) -> None:
    """As JSON, into each of these files."""
    text = json.dumps(told, indent=2) + "\n"
    for file in files:
        if file is not None:
            file.write_text(text, encoding="utf-8")
