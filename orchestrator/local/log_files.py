"""Logs that do not grow without end: one beyond a size is set aside and emptied in its place, its writers going on.

    policy.log ──beyond `most_bytes`──▶ policy.log.1 ──▶ policy.log.2 ──▶ … dropped beyond `keep`

Whoever writes holds the file open for appending, so that what it writes next stands at the emptied file's beginning.
What comes between the last look at the size and the emptying, some microseconds, is lost: the price of needing nobody's
help.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

MOST_BYTES = 16 * 2**20
KEEP = 2
_LOOK_SECONDS = 5.0
_LOG = logging.getLogger(__name__)


def rotate(log: Path, *, most_bytes: int = MOST_BYTES, keep: int = KEEP) -> bool:
    """Set a log aside if it is larger; whether it was. Raises OSError, then the log is as it was."""
    try:
        if log.stat().st_size <= most_bytes:
            return False
    except FileNotFoundError:
        return False
    aside = log.with_name(f".{log.name}.writing")
    try:
        with log.open("rb") as source, aside.open("wb") as target:
            while True:
                shutil.copyfileobj(source, target)
                if os.fstat(source.fileno()).st_size <= source.tell():
                    break
            target.flush()
            for number in range(keep - 1, 0, -1):
                if older(log, number).exists():
                    older(log, number).replace(older(log, number + 1))
            aside.replace(older(log, 1))
            os.truncate(log, 0)
    finally:
        aside.unlink(missing_ok=True)
    return True


def older(log: Path, number: int) -> Path:
    """What was set aside, 1 the newest."""
    return log.with_name(f"{log.name}.{number}")


async def keep_short(logs: Callable[[], Iterable[Path]], *, most_bytes: int = MOST_BYTES) -> None:
    """Look every few seconds, until cancelled. A log that cannot be set aside (a full disk) grows, told of once."""
    told: set[Path] = set()
    while True:
        for log in logs():
            try:
                await asyncio.to_thread(rotate, log, most_bytes=most_bytes)
            except OSError as error:
                if log not in told:
                    _LOG.warning("cannot set %s aside: %s", log, error.strerror)
                told.add(log)
        await asyncio.sleep(_LOOK_SECONDS)
