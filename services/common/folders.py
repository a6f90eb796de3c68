"""Owns how a folder, or files of one, come to be: written aside and renamed, so that they are whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.common.errors import InvalidInput


def check_place(out: Path) -> None:
    """Raises InvalidInput for a mount point, whose place nothing else can take. To be asked before the work is done."""
    if out.is_mount():
        raise InvalidInput(f"{out} is a mount point, which cannot be replaced: name a folder in it")


@contextmanager
def written(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into, which stands in the place of `out` once the block has ended well.

    replace: of whatever is there by then; else OSError for all but nothing and an empty folder. What was there comes
    back where it cannot be replaced, or was about to be when the process died.
    """
    out = out.resolve()
    aside, before = (out.with_name(f".{out.name}.{what}") for what in ("writing", "before"))
    shutil.rmtree(aside, ignore_errors=True)
    _put_back(before, out)
    aside.mkdir(parents=True)
    try:
        yield aside
        if replace and out.exists():
            out.rename(before)
        elif out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _put_back(before, out)


def _put_back(before: Path, out: Path) -> None:
    if out.exists():
        shutil.rmtree(before, ignore_errors=True)
    elif before.exists():
        before.rename(out)


@contextmanager
def files_written(out: Path) -> Iterator[Path]:
    """A folder to write files into, which take their places in `out` once the block has ended well.

    Other files in `out` stay.
    """
    whole = out.resolve()
    aside = whole.with_name(f".{whole.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        whole.mkdir(exist_ok=True)
        for file in sorted(aside.iterdir()):
            file.replace(whole / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
