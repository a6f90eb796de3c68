"""A run's small files: written so that a reader sees the old one or the new one, never a half; and read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from services.common.errors import Corrupted, NotFound, StorageFull

Model = TypeVar("Model", bound=BaseModel)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 beside `path`, sync it, then rename it over `path`.

    Raises NotFound without the folder and StorageFull without room on disk; the old file then stays.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except FileNotFoundError as error:
        raise NotFound(f"{path.parent}: no such folder") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{path}: no room on disk") from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def read_model(path: Path, kind: type[Model]) -> Model | None:
    """What a JSON file holds, as a pydantic model; None where there is no such file. Raises Corrupted."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise Corrupted(f"{path} is damaged: {str(error).splitlines()[0]}") from error
