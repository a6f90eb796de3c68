"""The lock file and the audit: what they take, what they say, and that the committed file is what it claims."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deploy.tools.audit import CLEAN, UNASKED, WEAK, last_line, verdict
from deploy.tools.lock import LOCK, locked, normal, pins, wanted

ROOT = Path(__file__).parents[3]
HASH = "0" * 64
PLATFORM = {
    "name": "whole",
    "dependencies": ["part", "grpcio>=1"],
    "optional-dependencies": {
        "all": ["whole[models,web]", "one>=2"],
        "models": ["torch>=2"],
        "web": ["whole[models]", "web[standard]>=1; sys_platform != 'win32'"],
        "dev": ["pytest"],
    },
}
PART = {"name": "part", "dependencies": ["protobuf>=4"]}


def test_what_is_wanted_is_what_others_make() -> None:
    """Extras that name extras are followed; our own distributions stand for what they need; dev is not asked for."""
    assert wanted([PLATFORM, PART], "all") == [
        "grpcio>=1",
        "one>=2",
        "protobuf>=4",
        "torch>=2",
        "web[standard]>=1; sys_platform != 'win32'",
    ]


def test_a_report_becomes_pins_with_hashes() -> None:
    """One line and one hash for each package, in order, and they are read back as they are."""
    report = {"install": [_installed("Zope.Interface", "6.0"), _installed("attrs", "26.1.0")]}
    text = locked(report)
    assert pins(text) == {"zope-interface": "6.0", "attrs": "26.1.0"}
    assert text.index("attrs") < text.index("zope")
    with pytest.raises(ValueError, match=r"attrs 1: no SHA-256"):
        locked({"install": [{"metadata": {"name": "attrs", "version": "1"}, "download_info": {"url": "x"}}]})


def _installed(name: str, version: str) -> dict[str, Any]:
    info = {"archive_info": {"hashes": {"sha256": HASH}}}
    return {"metadata": {"name": name, "version": version}, "download_info": info}


@pytest.mark.parametrize(
    "line",
    [
        f"--index-url https://example.org/simple\na==1 --hash=sha256:{HASH}",
        f"--extra-index-url https://example.org\na==1 --hash=sha256:{HASH}",
        "a==1",
        "a>=1 --hash=sha256:" + HASH,
        "a @ https://example.org/a.whl --hash=sha256:" + HASH,
        "a==1 --hash=md5:" + "0" * 32,
        "-e .",
    ],
)
def test_a_line_that_is_no_pin_with_hashes_is_refused(line: str) -> None:
    """Places to install from, ranges, other hashes and folders have no business in it."""
    with pytest.raises(ValueError, match="no pin with hashes"):
        pins(line)


def test_the_committed_file_pins_what_the_constraints_say() -> None:
    """Every package has a hash and the version that tests ran with; no line names a place; nothing is missing."""
    text = (ROOT / LOCK).read_text(encoding="utf-8")
    assert "://" not in text
    locked_here = pins(text)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    tested = {normal(name): version for name, version in tested.items()}
    differing = {name: (version, tested[name]) for name, version in locked_here.items() if name in tested}
    assert {name: two for name, two in differing.items() if two[0] != two[1]} == {}
    projects = [
        tomllib.loads((ROOT / file).read_text(encoding="utf-8"))["project"]
        for file in ("pyproject.toml", "protos/pyproject.toml")
    ]
    names = {normal(re.split(r"[^A-Za-z0-9._-]", one)[0]) for one in wanted(projects, "all")}
    assert names <= set(locked_here)


def test_what_was_asked_is_told_as_it_is() -> None:
    """Clean, weak and not asked are three answers: nobody answering is never taken for nothing known."""
    known = {
        "name": "a",
        "version": "1",
        "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}, {"id": "CVE-2", "fix_versions": []}],
    }
    good = {"name": "b", "version": "3", "vulns": []}
    skipped = {"name": "c", "skip_reason": "not found there"}

    def found(*packages: dict[str, Any]) -> str:
        return json.dumps({"dependencies": packages, "fixes": []})

    assert verdict(found(good), "") == (CLEAN, ["1 packages asked about: nothing is known against them"])
    assert verdict(found(good, known), "") == (
        WEAK,
        ["a 1: CVE-1, fixed in 2", "a 1: CVE-2, fixed in no release"],
    )
    half = "of 2 packages 1 could not be asked about, so nothing is known of c; the first: not found there"
    assert verdict(found(good, skipped), "") == (UNASKED, [half])
    assert verdict(found(known, skipped), "")[0] == WEAK
    status, told = verdict(None, last_line("Traceback\n  ConnectionError: no route\n\n"))
    assert (status, told) == (
        UNASKED,
        ["the advisory service could not be asked, so nothing is known: ConnectionError: no route"],
    )
