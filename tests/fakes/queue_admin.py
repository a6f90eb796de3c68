"""The queue server of a run's folder as the user who may do everything, whom only the supervisor knows."""

from __future__ import annotations

import re
from pathlib import Path


def admin_url(folder: Path) -> str:
    """From the server's settings, which nobody but the owner can read."""
    settings = (folder / "redis" / "server.conf").read_text(encoding="utf-8")
    port, password = (
        re.search(pattern, settings, re.MULTILINE) for pattern in (r"^port (\d+)$", r'^requirepass "(.+)"$')
    )
    assert port
    assert password
    return f"redis://:{password[1]}@127.0.0.1:{port[1]}/0"
