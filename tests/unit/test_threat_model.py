"""The threat model's claims name tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "threat-model.md"


def test_every_claim_names_what_there_is() -> None:
    """Each row of the table has a file that exists, and a test that is named stands in the file before it."""
    claims = PAGE.read_text(encoding="utf-8").partition("## Claims")[2].partition("## ")[0]
    rows = [
        line for line in claims.splitlines() if line.startswith("| ") and not line.startswith("| boundary")
    ]
    assert len(rows) >= 15
    for row in rows:
        held_by = row.rsplit("|", 2)[1]
        files = re.findall(r"`((?:tests/|requirements)[^`]*)`", held_by)
        assert files, row
        assert [file for file in files if not (ROOT / file).exists()] == []
        for file, name in re.findall(r"`([^`]+)` \(`(test_\w+)`\)", held_by):
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_its_links_lead_somewhere() -> None:
    """Files that the page links to exist."""
    links = re.findall(r"\]\(([^)#]+)", PAGE.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
