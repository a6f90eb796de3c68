"""What is known against the packages of requirements.lock, and a bill of materials. `make audit` runs it.

    build/sbom.cdx.json   what is installed in .venv, as CycloneDX
    build/audit.json      what pip-audit found; absent where the advisory service could not be asked

Exit 0: asked, and nothing is known; 1: weaknesses are known; 3: nobody could be asked, so nothing is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.tools.lock import LOCK, pins

BUILD = Path("build")
SBOM, FOUND = BUILD / "sbom.cdx.json", BUILD / "audit.json"
CLEAN, WEAK, UNASKED = 0, 1, 3


def verdict(found: str | None, last_words: str) -> tuple[int, list[str]]:
    """Exit status and lines for a person. `found`: what pip-audit wrote, None where it wrote nothing."""
    if found is None:
        why = last_words or "pip-audit ended without a word"
        return UNASKED, [f"the advisory service could not be asked, so nothing is known: {why}"]
    packages = json.loads(found)["dependencies"]
    skipped = [one for one in packages if "skip_reason" in one]
    weak = [
        f"{one['name']} {one['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no release'}"
        for one in packages
        for flaw in one.get("vulns", ())
    ]
    unasked = []
    if skipped:
        names = ", ".join(one["name"] for one in skipped[:5])
        why = f"{names}{', …' if len(skipped) > 5 else ''}; the first: {skipped[0]['skip_reason']}"
        unasked = [
            f"of {len(packages)} packages {len(skipped)} could not be asked about, so nothing is known of {why}"
        ]
    if weak:
        return WEAK, [*weak, *unasked]
    if unasked:
        return UNASKED, unasked
    return CLEAN, [f"{len(packages)} packages asked about: nothing is known against them"]


def last_line(text: str) -> str:
    """The last line that says something, as short as one line should be."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own programs, no shell
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False
    )


def _sbom() -> None:
    done = _run(
        ["cyclonedx_py", "environment", ".venv", "--output-format", "JSON", "--output-file", str(SBOM)]
    )
    if done.returncode:
        sys.exit(f"no bill of materials: {last_line(done.stderr)}")
    count = len(json.loads(SBOM.read_text(encoding="utf-8"))["components"])
    print(f"{SBOM}: {count} components")


def main() -> int:
    """Make the bill, ask, tell."""
    BUILD.mkdir(exist_ok=True)
    _sbom()
    print(f"{LOCK}: {len(pins(LOCK.read_text(encoding='utf-8')))} packages, all pinned with hashes")
    FOUND.unlink(missing_ok=True)
    options = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json"]
    done = _run(["pip_audit", *options, "--requirement", str(LOCK), "--output", str(FOUND)])
    found = FOUND.read_text(encoding="utf-8") if FOUND.exists() else None
    status, told = verdict(found, last_line(done.stderr))
    for line in told:
        print(f"audit: {line}", file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
