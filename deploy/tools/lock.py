"""requirements.lock: every package of the extra [all], pinned as constraints.txt says, with the hashes of its files.

`make lock` writes it, by pip-compile; `make audit` and an installation by hash (`pip install --require-hashes -r
requirements.lock`, then both distributions with --no-deps) read it. It names no index: where packages come from is for
who installs. It is for Linux on x86-64 with Python 3.11, as markers and wheels differ from platform to platform.
"""

from __future__ import annotations

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
_OPTIONS = (
    "--generate-hashes",
    "--allow-unsafe",
    "--strip-extras",
    "--no-annotate",
    "--no-header",
    "--no-emit-index-url",
    "--no-emit-trusted-host",
    "--no-emit-find-links",
    "--no-emit-options",
    "--quiet",
)


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


def main() -> int:
    """Write the lock file anew."""
    projects = [tomllib.loads(path.read_text(encoding="utf-8"))["project"] for path in PROJECTS]
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "all.in", Path(folder) / "all.lock"
        source.write_text("\n".join(wanted(projects, "all")) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "piptools", "compile", *_OPTIONS]
        done = subprocess.run(  # noqa: S603 - our own program, no shell
            [*command, "--constraint", str(CONSTRAINTS), "--output-file", str(made), str(source)], check=False
        )
        if done.returncode:
            return done.returncode
        text = HEAD + made.read_text(encoding="utf-8")
    print(f"{LOCK}: {len(pins(text))} packages")
    LOCK.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
