"""Owns how a folder comes to be: written aside and renamed, so that it is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into, which stands in the place of `out` once the block has ended well.

    replace: of whatever is there by then; else OSError for all but nothing and an empty folder.
    """
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if replace:
            shutil.rmtree(out, ignore_errors=True)
        elif out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
