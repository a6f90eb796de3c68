"""requirements.lock: every package of the extra [all], pinned as constraints.txt says, with the hashes of its files.

`make lock` writes it, as pip resolves it; `make audit` and an installation by hash (`pip install --require-hashes -r
requirements.lock`, then both distributions with --no-deps) read it. It names no index: where packages come from is for
who installs. It is for Linux on x86-64 with Python 3.11, as markers and wheels differ from platform to platform.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LOCK, CONSTRAINTS = Path("requirements.lock"), Path("constraints.txt")
PROJECTS = (Path("pyproject.toml"), Path("protos/pyproject.toml"))
HEAD = "# Made by `make lock`: every package of [all] for Linux x86-64 and Python 3.11, with hashes.\n"
# One package: its pin, perhaps a marker, and then nothing but hashes.
_ENTRY = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._+!]+)( ; [^\\]+)?( --hash=sha256:[0-9a-f]{64})+")
_NAME = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?")
# It resolves as an installation would, and tells what it would install from which file.
_RESOLVE = ("install", "--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check")


def wanted(projects: list[Mapping[str, Any]], extra: str) -> list[str]:
    """What the distributions need of others, with this extra of the first one; their own names are taken apart."""
    own = {project["name"]: project for project in projects}
    extras = projects[0].get("optional-dependencies", {})

    def expand(requirements: list[str]) -> Iterator[str]:
        for requirement in requirements:
            match = _NAME.match(requirement)
            if match is None or match[1] not in own:
                yield requirement
            elif own[match[1]] is projects[0]:
                for name in (match[2] or "").split(","):
                    yield from expand(extras[name.strip()])
            else:
                yield from own[match[1]]["dependencies"]

    return sorted({*expand(projects[0]["dependencies"]), *expand(extras[extra])})


def pins(text: str) -> dict[str, str]:
    """Package to version. Raises ValueError for a line without pin and hashes, or with an index."""
    joined = text.replace("\\\n", " ")
    found = {}
    for line in joined.splitlines():
        entry = " ".join(line.split())
        if not entry or entry.startswith("#"):
            continue
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"no pin with hashes: {entry[:80]}")
        found[normal(match[1])] = match[2]
    return found


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(report: Mapping[str, Any]) -> str:
    """The lock file, from pip's report of an installation. Raises ValueError for a file without a SHA-256."""
    entries = []
    for one in report["install"]:
        name, version = normal(one["metadata"]["name"]), one["metadata"]["version"]
        sha256 = one["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if not sha256:
            raise ValueError(f"{name} {version}: no SHA-256 of its file")
        entries.append(f"{name}=={version} \\\n    --hash=sha256:{sha256}\n")
    return HEAD + "".join(sorted(entries))


def main() -> int:
    """Write the lock file anew."""
    if sys.version_info[:2] != (3, 11):
        sys.exit("expected Python 3.11: the lock file is for it")
    projects = [tomllib.loads(path.read_text(encoding="utf-8"))["project"] for path in PROJECTS]
    with tempfile.TemporaryDirectory() as folder:
        source, report = Path(folder) / "all.txt", Path(folder) / "report.json"
        source.write_text("\n".join(wanted(projects, "all")) + "\n", encoding="utf-8")
        files = ["--constraint", str(CONSTRAINTS), "--requirement", str(source), "--report", str(report)]
        done = subprocess.run([sys.executable, "-m", "pip", *_RESOLVE, *files], check=False)  # noqa: S603 - our own
        if done.returncode:
            return done.returncode
        text = locked(json.loads(report.read_text(encoding="utf-8")))
    LOCK.write_text(text, encoding="utf-8")
    print(f"{LOCK}: {len(pins(text))} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
